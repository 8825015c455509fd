//! Specs of ImageBuilds, made from the schema.

use std::collections::HashMap;

use fastrand::Rng;
use kiln_crds::ImageBuild;
use kube::CustomResourceExt as _;
use serde_json::{Map, Value, json};

/// One in so many fields that need not be there is, in specs that are not about one field.
const RARE: usize = 6;
/// The longest text that is made at all: a field may hold a quarter of a megabyte, which shows nothing more.
const LONGEST: u64 = 20_000;
/// What texts without a pattern are made of.
const LETTERS: [&str; 7] = ["a", "ä", "😀", "\u{1}", "\"", "\\", " "];

/// Makes specs.
pub struct Specs {
    schema: Value,
    fields: Vec<String>,
    /// How many values each field has had: they come one after the other, so that few specs have all edges.
    had: HashMap<String, usize>,
}

impl Specs {
    pub fn new() -> Self {
        let crd = serde_json::to_value(ImageBuild::crd()).unwrap();
        let schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"].clone();
        let mut fields = Vec::new();
        leaves(&schema, "", &mut fields);
        Self { schema, fields, had: HashMap::new() }
    }

    /// The fields that hold no others, such as `platforms[].args.*`.
    pub fn fields(&self) -> &[String] {
        &self.fields
    }

    /// A spec with one of the fields: of the first of them with little else and a usual value.
    pub fn spec(&mut self, number: u64, random: &mut Rng) -> Value {
        let number = usize::try_from(number).unwrap();
        let field = self.fields[number % self.fields.len()].as_str();
        let mut making = Making { field, usual: number < self.fields.len(), random, had: &mut self.had };
        let mut spec = making.value(&self.schema, "");
        if making.usual || making.random.usize(..10) > 0 {
            making.settle(&mut spec);
        }
        spec
    }
}

fn leaves(schema: &Value, path: &str, fields: &mut Vec<String>) {
    if let Some(properties) = schema["properties"].as_object() {
        properties.iter().for_each(|(name, inner)| leaves(inner, &join(path, name), fields));
    } else if schema["items"].is_object() {
        leaves(&schema["items"], &format!("{path}[]"), fields);
    } else if schema["additionalProperties"].is_object() {
        fields.push(format!("{path}.*"));
    } else {
        fields.push(path.to_owned());
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// A spec on its way.
struct Making<'a> {
    /// The field that it has to have.
    field: &'a str,
    /// Whether all values are usual ones, and nothing is there that need not be.
    usual: bool,
    random: &'a mut Rng,
    had: &'a mut HashMap<String, usize>,
}

impl Making<'_> {
    fn is_on_the_way(&self, path: &str) -> bool {
        let rest = self.field.strip_prefix(path);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    }

    /// The next of a field's values; the first where it has to be a usual one.
    fn next<T: Clone>(&mut self, path: &str, of: &[T]) -> T {
        let had = self.had.entry(path.to_owned()).or_default();
        let at = if self.usual { 0 } else { *had % of.len() };
        *had = at + 1;
        of[at].clone()
    }

    /// Any of them; the first where it has to be a usual one.
    fn any<T: Clone>(&mut self, of: &[T]) -> T {
        let at = if self.usual { 0 } else { self.random.usize(..of.len()) };
        of[at].clone()
    }

    fn value(&mut self, schema: &Value, path: &str) -> Value {
        if let Some(value) = self.known(path) {
            return value;
        }
        if let Some(values) = schema["enum"].as_array() {
            return self.next(path, values);
        }
        match schema["type"].as_str() {
            Some("object") if schema["properties"].is_object() => self.object(schema, path),
            Some("object") => self.map(schema, path),
            Some("array") => self.list(schema, path),
            Some("integer") => self.integer(schema, path),
            Some("boolean") => json!(self.next(path, &[true, false])),
            Some("string") => self.text(schema, path),
            other => panic!("{path}: values of the type {other:?} are not made yet"),
        }
    }

    fn object(&mut self, schema: &Value, path: &str) -> Value {
        let required: Vec<&str> =
            schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let mut object = Map::new();
        for (name, inner) in schema["properties"].as_object().unwrap() {
            let path = join(path, name);
            let wanted = required.contains(&name.as_str()) || self.is_on_the_way(&path);
            if wanted || !self.usual && self.random.usize(..RARE) == 0 {
                let is_null = !wanted && inner["nullable"] == true && self.random.usize(..10) == 0;
                object.insert(name.clone(), if is_null { Value::Null } else { self.value(inner, &path) });
            }
        }
        object.into()
    }

    fn map(&mut self, schema: &Value, path: &str) -> Value {
        let least = schema["minProperties"].as_u64().unwrap_or(0);
        let least = if self.is_on_the_way(path) { least.max(1) } else { least };
        let count = self.count(least, schema["maxProperties"].as_u64().unwrap());
        let entries = (0..count).map(|number| {
            let long = "f".repeat(240);
            let key = match path {
                "source.inline.files" => self.any(&["a", "ä/.b", ".dockerignore", &long]),
                _ if path.ends_with("args") => self.any(&["A", "_a9", &long]),
                _ => self.any(&["a", "org.example/ä b", "\u{1}", "", "x,y=z"]),
            };
            let value = self.value(&schema["additionalProperties"], &format!("{path}.*"));
            (if number == 0 { key.to_owned() } else { format!("{key}{number}") }, value)
        });
        entries.collect::<Map<_, _>>().into()
    }

    fn list(&mut self, schema: &Value, path: &str) -> Value {
        let least = schema["minItems"].as_u64().unwrap_or(0);
        let least = if self.is_on_the_way(path) { least.max(1) } else { least };
        let count = self.count(least, schema["maxItems"].as_u64().unwrap());
        let keys: Vec<&str> =
            schema["x-kubernetes-list-map-keys"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let mut list: Vec<Value> = Vec::new();
        for _ in 0..count {
            let entry = self.value(&schema["items"], &format!("{path}[]"));
            let is_same = |other: &Value| match keys[..] {
                [] => *other == entry,
                _ => keys.iter().all(|key| other[*key] == entry[*key]),
            };
            if !list.iter().any(is_same) {
                list.push(entry);
            }
        }
        list.into()
    }

    /// Mostly few.
    fn count(&mut self, least: u64, most: u64) -> u64 {
        if self.usual {
            return 1;
        }
        let count = *self.random.choice(&[least, 1, 1, 1, 2, 2, 3, most]).unwrap();
        count.clamp(least, most)
    }

    fn integer(&mut self, schema: &Value, path: &str) -> Value {
        let bound = |name: &str, otherwise: i64| {
            #[allow(clippy::cast_possible_truncation, reason = "bounds are whole numbers")]
            schema[name].as_f64().map_or(otherwise, |bound| bound as i64)
        };
        let (least, most) = (bound("minimum", i64::MIN), bound("maximum", i64::MAX));
        json!(self.next(path, &[least.max(1), least, most, least + 1, most - 1]))
    }

    fn text(&mut self, schema: &Value, path: &str) -> Value {
        let (least, most) = (schema["minLength"].as_u64().unwrap_or(0), schema["maxLength"].as_u64().unwrap());
        let most = most.min(LONGEST);
        let length =
            usize::try_from(self.next(path, &[least.max(1), least, most, most - 1, (least + 1).min(most)])).unwrap();
        if schema["pattern"].is_string() {
            return json!("a".repeat(length));
        }
        let letters = self.any(&LETTERS);
        json!(letters.repeat(length))
    }

    /// Values of fields with a form that a rule or a pattern asks for. The first is a usual one; some are refused.
    fn known(&mut self, path: &str) -> Option<Value> {
        let parent = path.rsplit_once('.').map_or("", |(parent, _)| parent);
        let name = path.rsplit('.').next().unwrap_or(path);
        let long = |begin: &str, length: usize| format!("{begin}{}", "a".repeat(length - begin.len()));
        let image = || vec!["ghcr.io/acme/app:1.2".to_owned(), "alpine".to_owned(), long("r.example/", 640)];
        let texts: Vec<String> = match name {
            "interval" | "timeout" | "silenceTimeout" | "maxAge" => durations(),
            "shmSize" => return Some(self.next(path, &quantities())),
            "url" if parent.ends_with("git") => [
                "https://git.example/a.git",
                "git@git.example:a/b",
                "ssh://git.example:2222/~/a",
                "https://[fd00::1]:8443/a/",
            ]
            .map(str::to_owned)
            .into_iter()
            .chain([long("https://git.example/", 2048)])
            .collect(),
            "url" => vec!["https://web.example/a.tar.gz?b=c".into(), long("https://web.example/", 2048)],
            "checksum" => vec![format!("sha256:{}", "0f".repeat(32))],
            "ref" if parent.ends_with("git") => {
                vec![
                    "main".into(),
                    "refs/tags/v1".into(),
                    "ä/b".into(),
                    "f".repeat(40),
                    "b".repeat(255),
                    "ä".repeat(255),
                ]
            }
            "ref" if parent == "source.image" => image(),
            "ref" => vec!["ghcr.io/acme/app:cache".into(), long("r.example/", 512)],
            "path" if parent == "archive" => {
                vec!["app.tar".into(), "a/{{ run }}.tar".into(), format!("{}.tar", "ä".repeat(252))]
            }
            "path" => vec!["src".into(), "a/..b/".into(), "ä".repeat(1024)],
            "archive" => match parent {
                "platforms[]" => vec!["app.tar".into(), "ä".repeat(256)],
                _ => return None,
            },
            "image" if matches!(parent, "platforms[]" | "contexts[]") => image(),
            "name" if parent == "platforms[]" => [
                "linux/amd64",
                "linux/arm/v7",
                "LINUX/aarch64",
                "linux/riscv64",
                "windows(10.0.20348)/x86_64",
                "darwin/arm64",
            ]
            .map(str::to_owned)
            .to_vec(),
            "name" if parent == "contexts[]" => {
                vec!["base".into(), "docker.io/library/alpine:3.20".into(), long("b", 256)]
            }
            "name" if parent == "ulimits[]" => ["nofile", "core", "sigpending", "stack"].map(str::to_owned).to_vec(),
            "buildOn" => vec!["linux/amd64".into(), "linux/AARCH64".into(), "linux/arm/v7".into()],
            "dockerfile" => vec!["Dockerfile".into(), "../../x/Dockerfile".into(), "ä".repeat(1024)],
            "ip" => vec!["10.0.0.7".into(), "fd00::7".into(), "2001:db8:1111:2222:3333:4444:5555:6666".into()],
            "repository" => vec![
                "ghcr.io/acme/app".into(),
                "app".into(),
                "localhost:5000/a__b/c-d".into(),
                "GHCR.io/acme/app".into(),
                format!(
                    "{}:65535/{}",
                    ["h".repeat(63), "h".repeat(63), "h".repeat(63), "h".repeat(58)].join("."),
                    "p".repeat(255)
                ),
            ],
            "tags[]" => {
                vec!["v1".into(), "{{branch}}".into(), "v{{ run }}-{{timestamp}}".into(), "_".into(), "t".repeat(128)]
            }
            "allowForeignPrograms[]" => vec!["/usr/bin/qemu".into(), "/".into(), format!("/{}", "ä".repeat(255))],
            _ => return None,
        };
        Some(json!(self.next(path, &texts)))
    }

    /// Of what excludes each other one stays, that which has to be there before others; what others need is added.
    fn settle(&mut self, spec: &mut Value) {
        for context in entries(spec, "contexts") {
            self.one_of(context, "contexts[]", &["image", "git", "imageBuild"], json!("alpine"));
        }
        if has(spec, "image") && has(spec, "archive") {
            take(spec, if self.is_on_the_way("archive") { "image" } else { "archive" });
        }
        let (mut is_index, is_archive) = (has(spec, "platforms"), has(spec, "archive"));
        let mut has_taken = false;
        for platform in entries(spec, "platforms") {
            let of_build = ["dockerfile", "target", "args", "buildOn"];
            let keeps = |name: &&str| self.is_on_the_way(&format!("platforms[].{name}"));
            if has(platform, "archive") && has(platform, "image") {
                take(platform, if keeps(&"archive") { "image" } else { "archive" });
            }
            let unwanted: &[&str] =
                if is_archive || of_build.iter().any(keeps) { &["image", "archive"] } else { &of_build };
            if has(platform, "archive") || has(platform, "image") {
                for name in unwanted {
                    take(platform, name);
                }
            }
            let is_taken = has(platform, "archive") || has(platform, "image");
            (is_index, has_taken) = (is_index && is_taken, has_taken || is_taken);
        }
        if has_taken && !has(spec, "image") {
            spec["image"] = json!({"repository": "ghcr.io/acme/app"});
        }
        if !is_index && !has(spec, "source") {
            spec["source"] = json!({});
        }
        if has(spec, "dockerfile") && has(spec, "dockerfileInline") {
            take(spec, if self.is_on_the_way("dockerfile") { "dockerfileInline" } else { "dockerfile" });
        }
        if has(spec, "source") {
            let files = json!({"files": {"a": ""}});
            self.one_of(&mut spec["source"], "source", &["inline", "git", "http", "image"], files);
        }
        if has(&spec["source"], "inline") && !has(spec, "dockerfileInline") {
            if spec["dockerfile"].as_str().is_some_and(|path| path.starts_with('.') || path.len() > 99) {
                take(spec, "dockerfile");
            }
            let name = spec["dockerfile"].as_str().unwrap_or("Dockerfile").to_owned();
            spec["source"]["inline"]["files"][&name] = json!("FROM scratch");
        }
        spec.pointer_mut("/source/git").into_iter().for_each(with_history);
        entries(spec, "contexts").filter_map(|of| of.get_mut("git")).for_each(with_history);
        for limit in entries(spec, "ulimits") {
            if has(limit, "hard") {
                limit["soft"] = limit["hard"].clone();
            }
        }
        if let Some(image) = spec.get_mut("image").filter(|image| image.is_object()) {
            if let Some(compression) = image.get_mut("compression").filter(|of| of.is_object()) {
                match compression["type"].as_str() {
                    Some("uncompressed") => take(compression, "level"),
                    Some("zstd") => {}
                    _ if compression["level"].as_i64() > Some(9) => compression["level"] = json!(9),
                    _ => {}
                }
            }
            if image["mediaTypes"] == "Docker" {
                take(image, "compression");
                take(spec, "annotations");
            }
        }
    }

    /// Keeps one of these, or puts `otherwise` into the place of the first.
    fn one_of(&mut self, object: &mut Value, path: &str, names: &[&str], otherwise: Value) {
        let mut there: Vec<&str> = names.iter().copied().filter(|name| has(object, name)).collect();
        there.sort_by_key(|name| !self.is_on_the_way(&join(path, name)));
        if there.is_empty() {
            object[names[0]] = otherwise;
        }
        there.iter().skip(1).for_each(|name| take(object, name));
    }
}

fn with_history(git: &mut Value) {
    if git["fullHistory"] == true {
        git["keepGitDir"] = json!(true);
    }
}

fn durations() -> Vec<String> {
    [
        "5m",
        "0s",
        "0h",
        "5s",
        "0.5s",
        "1.5h",
        "1h1m10.000000001s",
        "0000000005m0.1h",
        "9999999999h",
        "876000h",
        "2562047h47m16s",
    ]
    .map(str::to_owned)
    .to_vec()
}

fn quantities() -> Vec<Value> {
    let texts =
        ["64Mi", "1", "0.5", "1e3", "1E", "100m", "+1", "12.", ".5Gi", "1Ei", "9223372036854775807", "1e-3", "0"];
    texts.map(|text| json!(text)).into_iter().chain([json!(1), json!(67_108_864), json!(i64::MAX)]).collect()
}

fn has(value: &Value, name: &str) -> bool {
    !value[name].is_null()
}

fn take(value: &mut Value, name: &str) {
    if let Some(object) = value.as_object_mut() {
        object.remove(name);
    }
}

fn entries<'a>(value: &'a mut Value, name: &str) -> impl Iterator<Item = &'a mut Value> {
    value.get_mut(name).and_then(Value::as_array_mut).into_iter().flatten()
}
