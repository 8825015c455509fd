//! The applications of `examples/apps`, as they stand there: built from Git with real package registries, run from the
//! pushed image, asked over HTTP; then a source file changes, and what was downloaded is not downloaded again.
//!
//! They need base images of languages: `tests/cluster/images/languages` makes them, and `make test-all` calls it.

mod all_platforms;
mod app;
mod service;

use http::StatusCode;
use kiln_e2e::served::Served;
use serde_json::{Value, json};

use self::app::Change;
use self::service::Service;

kiln_e2e::tests![ignored go, ignored java_maven, ignored node, ignored web_nginx, ignored python_flask, ignored rust; in all_platforms];

const AMD64: &[&str] = &["linux/amd64"];
const BOTH: &[&str] = &["linux/amd64", "linux/arm64"];

async fn go() {
    let service = Service {
        folder: "go",
        platforms: AMD64,
        registries: &["proxy.golang.org"],
        fetches: "go mod download",
        compiles: "go build",
        source: Change { file: "main.go", from: "\"links: POST", to: "\"Links: POST" },
        manifest: Some(Change { file: "go.mod", from: "go 1.19", to: "go 1.19 // and later" }),
    };
    service
        .run(async |app: &Served<'_>, changed| {
            let greeting = if changed { "Links: POST a URL to /links\n" } else { "links: POST a URL to /links\n" };
            assert_eq!(app.get("/").await.body, greeting);
            let made = app.post("/links", "text/plain", "https://example.com/a/long/path").await;
            assert_eq!(made.status, StatusCode::CREATED, "{}", made.body);
            let link = object(&made.body);
            assert_eq!(link["url"], "https://example.com/a/long/path");
            let id = link["id"].as_str().expect("a link has an id");
            assert_eq!(object(&app.get(&format!("/links/{id}")).await.body), link);
            assert_eq!(app.get(&format!("/{id}")).await.status, StatusCode::FOUND);
            assert_eq!(app.post("/links", "text/plain", "nothing").await.status, StatusCode::BAD_REQUEST);
        })
        .await;
}

async fn java_maven() {
    let service = Service {
        folder: "java-maven",
        platforms: AMD64,
        registries: &["repo.maven.apache.org"],
        fetches: "dependency:go-offline",
        compiles: "package",
        source: Change {
            file: "src/main/java/build/kiln/example/Main.java",
            from: "\"words: POST",
            to: "\"Words: POST",
        },
        manifest: Some(Change { file: "pom.xml", from: "</project>", to: "</project>\n<!-- changed -->" }),
    };
    service
        .run(async |app: &Served<'_>, changed| {
            let greeting = if changed { "Words: POST a text to /count\n" } else { "words: POST a text to /count\n" };
            assert_eq!(app.get("/").await.body, greeting);
            let counted = app.post("/count", "text/plain", "The cat, the dog").await;
            assert_eq!(object(&counted.body), json!({"total": 4, "words": {"cat": 1, "dog": 1, "the": 2}}));
            assert_eq!(app.get("/count").await.status, StatusCode::METHOD_NOT_ALLOWED);
        })
        .await;
}

async fn node() {
    let service = Service {
        folder: "node",
        platforms: AMD64,
        registries: &["registry.npmjs.org"],
        fetches: "npm ci",
        compiles: "COPY src",
        source: Change { file: "src/app.js", from: "markdown: POST", to: "Markdown: POST" },
        manifest: Some(Change { file: "package.json", from: "Renders Markdown", to: "Turns Markdown" }),
    };
    service
        .run(async |app: &Served<'_>, changed| {
            let greeting = if changed {
                "Markdown: POST text/markdown to /render\n"
            } else {
                "markdown: POST text/markdown to /render\n"
            };
            assert_eq!(app.get("/").await.body, greeting);
            let rendered = app.post("/render", "text/markdown", "# Hello *you*").await;
            assert_eq!(rendered.body.trim(), "<h1>Hello <em>you</em></h1>");
            assert_eq!(app.post("/render", "image/png", "x").await.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
        })
        .await;
}

async fn web_nginx() {
    let service = Service {
        folder: "web-nginx",
        platforms: BOTH,
        registries: &["registry.npmjs.org"],
        fetches: "npm ci",
        compiles: "npm run build",
        source: Change { file: "src/App.vue", from: "Built by Kiln", to: "Built again by Kiln" },
        manifest: Some(Change { file: "package.json", from: "\"1.0.0\"", to: "\"1.0.1\"" }),
    };
    service
        .run(async |app: &Served<'_>, changed| {
            let page = app.get("/").await;
            assert!(page.body.contains("<div id=\"app\"></div>"), "{}", page.body);
            // The API server puts its own path before those that a page names.
            let script = page.body.split('"').find(|part| {
                part.contains("/assets/") && part.rsplit_once('.').is_some_and(|(_, ending)| ending == "js")
            });
            let (_, name) = script.and_then(|path| path.rsplit_once('/')).expect("the page names its script");
            let script = app.get(&format!("/assets/{name}")).await;
            assert_eq!(script.status, StatusCode::OK);
            // The API server adds one of its own.
            let mut kept = script.headers.get_all("cache-control").iter();
            assert!(kept.any(|value| value.to_str().unwrap().contains("immutable")));
            let title = if changed { "Built again by Kiln" } else { "Built by Kiln" };
            assert!(script.body.contains(title), "the script holds {title:?}");
            assert_eq!(app.get("/any/route").await.body, page.body, "the page does its own routing");
        })
        .await;
}

async fn python_flask() {
    let service = Service {
        folder: "python-flask",
        platforms: BOTH,
        registries: &["pypi.org", "files.pythonhosted.org"],
        fetches: "pip install",
        compiles: "COPY app",
        source: Change { file: "app/templates/book.html", from: "<h1>Guest book", to: "<h1>Visitors" },
        // pip asks its index for each package, whatever it has kept.
        manifest: None,
    };
    service
        .run(async |app: &Served<'_>, changed| {
            let title = if changed { "<h1>Visitors</h1>" } else { "<h1>Guest book</h1>" };
            let page = app.get("/").await.body;
            assert!(page.contains(title), "{page}");
            let signed = app.post("/", "application/x-www-form-urlencoded", "name=Ada+%3CL.%3E").await;
            assert_eq!(signed.status, StatusCode::SEE_OTHER);
            let page = app.get("/").await.body;
            assert!(page.contains("<li>Ada &lt;L.&gt;</li>"), "{page}");
            let refused = app.post("/", "application/x-www-form-urlencoded", "name=").await;
            assert_eq!(refused.status, StatusCode::BAD_REQUEST);
        })
        .await;
}

async fn rust() {
    let service = Service {
        folder: "rust",
        platforms: AMD64,
        registries: &["index.crates.io", "static.crates.io"],
        fetches: "cargo fetch",
        compiles: "cargo build",
        source: Change { file: "src/main.rs", from: "\"dice: GET", to: "\"Dice: GET" },
        manifest: Some(Change { file: "Cargo.toml", from: "publish = false", to: "publish = false # an example" }),
    };
    service
        .run(async |app: &Served<'_>, changed| {
            let greeting = if changed { "Dice: GET /roll?dice=2d6\n" } else { "dice: GET /roll?dice=2d6\n" };
            assert_eq!(app.get("/").await.body, greeting);
            let roll = object(&app.get("/roll?dice=3d6").await.body);
            let throws: Vec<_> = roll["throws"].as_array().expect("throws").iter().filter_map(Value::as_u64).collect();
            assert!(throws.len() == 3 && throws.iter().all(|throw| (1..=6).contains(throw)), "{roll}");
            assert_eq!(roll["sum"], throws.iter().sum::<u64>());
            assert_eq!(app.get("/roll?dice=many").await.status, StatusCode::BAD_REQUEST);
        })
        .await;
}

fn object(json: &str) -> Value {
    serde_json::from_str(json).unwrap_or_else(|error| panic!("{json:?}: {error}"))
}
