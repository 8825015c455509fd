package build.kiln.example;

import java.util.Map;
import java.util.TreeMap;
import java.util.regex.Pattern;

/**
 * The words of a text.
 *
 * @param total how many there are
 * @param words how often each stands there, in lower case
 */
record WordCount(int total, Map<String, Integer> words) {
    private static final Pattern WORD = Pattern.compile("[\\p{L}\\p{Nd}]+");

    static WordCount of(String text) {
        Map<String, Integer> words = new TreeMap<>();
        WORD.matcher(text).results().forEach(found -> words.merge(found.group().toLowerCase(), 1, Integer::sum));
        return new WordCount(words.values().stream().mapToInt(Integer::intValue).sum(), words);
    }
}
