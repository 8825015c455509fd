package build.kiln.example;

import com.google.gson.Gson;
import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.nio.charset.StandardCharsets;
import java.util.concurrent.Executors;

/** Counts the words of a text that is posted to /count, and answers with the numbers as JSON. */
public final class Main {
    private static final int LIMIT = 1 << 20;
    private static final Gson GSON = new Gson();

    public static void main(String[] arguments) throws IOException {
        HttpServer server = HttpServer.create(new InetSocketAddress(8080), 0);
        server.setExecutor(Executors.newFixedThreadPool(8));
        server.createContext("/", exchange -> answer(exchange, 200, "text/plain", "words: POST a text to /count\n"));
        server.createContext("/healthz", exchange -> answer(exchange, 200, "text/plain", "ok\n"));
        server.createContext("/count", Main::count);
        server.start();
        System.out.println("listening on " + server.getAddress().getPort());
    }

    private static void count(HttpExchange exchange) throws IOException {
        if (!exchange.getRequestMethod().equals("POST")) {
            answer(exchange, 405, "text/plain", "POST a text\n");
            return;
        }
        byte[] body = exchange.getRequestBody().readNBytes(LIMIT + 1);
        if (body.length > LIMIT) {
            answer(exchange, 413, "text/plain", "a text has at most 1 MiB\n");
            return;
        }
        WordCount count = WordCount.of(new String(body, StandardCharsets.UTF_8));
        answer(exchange, 200, "application/json", GSON.toJson(count) + "\n");
    }

    private static void answer(HttpExchange exchange, int status, String type, String body) throws IOException {
        byte[] bytes = body.getBytes(StandardCharsets.UTF_8);
        exchange.getResponseHeaders().set("Content-Type", type + "; charset=utf-8");
        exchange.sendResponseHeaders(status, bytes.length);
        try (exchange) {
            exchange.getResponseBody().write(bytes);
        }
    }

    private Main() {}
}
