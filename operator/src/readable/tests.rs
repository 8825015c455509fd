//! Each kind with what it may never have: in each enum of its schema a value that nobody knows, and each field in another form.

use axum::Router;
use axum::response::IntoResponse as _;
use futures::StreamExt as _;
use kube::CustomResourceExt;
use kube::api::WatchEvent;
use kube::core::ObjectList;
use kube::runtime::watcher;

use super::*;
use crate::trim;

/// The way to a field through a schema: names of properties, `[]` for an element, `*` for a key of a map.
type Path = Vec<String>;

fn schema<K: CustomResourceExt>() -> Value {
    let crd = serde_json::to_value(K::crd()).unwrap();
    crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone()
}

/// The way to each field, with its schema.
fn fields<'a>(schema: &'a Value, path: &Path, found: &mut Vec<(Path, &'a Value)>) {
    let deeper = |name: &str| path.iter().cloned().chain([name.to_owned()]).collect::<Path>();
    let properties = schema["properties"].as_object().into_iter().flatten();
    let others = [("[]", schema.get("items")), ("*", schema.get("additionalProperties"))];
    let others = others.into_iter().filter_map(|(name, schema)| Some((name, schema.filter(|of| of.is_object())?)));
    for (name, schema) in properties.map(|(name, schema)| (name.as_str(), schema)).chain(others) {
        let path = deeper(name);
        fields(schema, &path, found);
        found.push((path, schema));
    }
}

/// The least that a schema asks for.
fn least(schema: &Value) -> Value {
    if let Some(value) = schema["enum"].as_array().and_then(|all| all.first()) {
        return value.clone();
    }
    match (schema["type"].as_str(), schema["format"].as_str()) {
        (Some("object"), _) => {
            let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
            required.map(|name| (name.to_owned(), least(&schema["properties"][name]))).collect()
        }
        (Some("array"), _) => json!([]),
        (Some("integer" | "number"), _) => json!(1),
        (Some("boolean"), _) => json!(false),
        (_, Some("date-time")) => json!("2026-01-01T00:00:00.000000Z"),
        _ => json!("x"),
    }
}

/// Writes a value at the end of the way, and what has to be there on the way.
fn put(object: &mut Value, schema: &Value, path: &[String], value: Value) {
    let Some((name, rest)) = path.split_first() else {
        *object = value;
        return;
    };
    let (schema, place) = match name.as_str() {
        "[]" => {
            let list = object.as_array_mut().unwrap();
            if list.is_empty() {
                list.push(least(&schema["items"]));
            }
            (&schema["items"], &mut list[0])
        }
        "*" => (&schema["additionalProperties"], &mut object["key"]),
        name => (&schema["properties"][name], &mut object[name]),
    };
    if place.is_null() {
        *place = least(schema);
    }
    put(place, schema, rest, value);
}

fn object<K: Resource<DynamicType = ()>>(name: &str, spec: &Value, status: &Value) -> Value {
    json!({
        "apiVersion": K::api_version(&()), "kind": K::kind(&()), "spec": spec, "status": status,
        "metadata": {"name": name, "namespace": "team", "uid": format!("uid-of-{name}"), "resourceVersion": "7"},
    })
}

fn pool() -> Value {
    object::<BuilderPool>("default", &json!({"default": true}), &json!({}))
}

fn tag() -> Value {
    json!({"repository": "r.example/app", "tag": "one", "digest": "sha256:0"})
}

fn image() -> Value {
    json!({"repository": "r.example/app", "tags": ["one"], "copies": [{"repository": "r.example/copy"}]})
}

fn build() -> Value {
    object::<ImageBuild>("app", &json!({"image": image()}), &json!({"tags": [tag()]}))
}

fn run() -> Value {
    let spec = json!({
        "imageBuild": {"name": "app", "uid": "u"}, "number": 7, "inputHash": "x",
        "build": {"image": image(), "pool": "default"},
    });
    let platform = json!({
        "name": "linux/amd64", "phase": "Building", "attempt": 1, "builder": {"pod": "b", "uid": "u", "node": "n"},
    });
    object::<ImageBuildRun>("app-7", &spec, &json!({"phase": "Building", "platforms": [platform], "tags": [tag()]}))
}

fn list(items: &[Value]) -> Value {
    json!({"apiVersion": "kiln.build/v1alpha1", "kind": "List", "metadata": {"resourceVersion": "7"}, "items": items})
}

/// Of all fields of a kind: one that is read as no version before has written it stops nothing, is told, and `keeps` says what
/// is left of the object.
fn each_field<K>(good: &Value, keeps: impl Fn(&str, &K))
where
    K: Partial + CustomResourceExt + Resource<DynamicType = ()> + Clone + Debug,
{
    let schema = schema::<K>();
    let mut all = Vec::new();
    for part in ["spec", "status"] {
        fields(&schema["properties"][part], &vec![part.to_owned()], &mut all);
    }
    let (mut enums, mut forms) = (0, 0);
    for (path, field) in all {
        let name = path.join(".");
        let is_enum = field.get("enum").is_some();
        let form = if matches!(field["type"].as_str(), Some("string" | "integer" | "number")) {
            json!({"a": "form"})
        } else {
            json!("form")
        };
        let odd = |value: Value| {
            let mut object = good.clone();
            put(&mut object, &schema, &path, value);
            object
        };
        let values = if is_enum { vec![json!("Unheard"), form] } else { vec![form] };
        for value in values {
            let odd = odd(value.clone());
            let text = list(&[good.clone(), odd.clone()]).to_string();
            let former = serde_json::from_str::<ObjectList<K>>(&text);
            let read: ObjectList<Read<K>> = serde_json::from_str(&text).unwrap_or_else(|why| panic!("{name}: {why}"));
            assert_eq!((read.items.len(), &read.items[0].problem), (2, &None), "{name}");
            let problem = &read.items[1].problem;
            assert_eq!(problem.is_some(), former.is_err(), "{name}: {value}: {problem:?}");
            if value == "Unheard" {
                let problem = problem.as_ref().unwrap_or_else(|| panic!("{name} takes any value"));
                assert!(
                    problem.starts_with(&path[..1].join(".")) && problem.contains("`Unheard`"),
                    "{name}: {problem}"
                );
                enums += 1;
            }
            let object = &read.items[1].object;
            assert_eq!((object.meta().uid.as_deref(), object.meta().name.as_deref()), {
                (good["metadata"]["uid"].as_str(), good["metadata"]["name"].as_str())
            });
            keeps(&name, object);
            forms += usize::from(problem.is_some());
            // However an event is written.
            for event in [
                format!(r#"{{"type": "MODIFIED", "object": {odd}}}"#),
                format!(r#"{{"object": {odd}, "type": "DELETED"}}"#),
            ] {
                let event: WatchEvent<Read<K>> = serde_json::from_str(&event).unwrap();
                let (WatchEvent::Modified(read) | WatchEvent::Deleted(read)) = event else { panic!("{name}") };
                assert_eq!(&read.problem, problem, "{name}");
            }
        }
        if is_enum {
            let whole: Read<K> = serde_json::from_value(odd(field["enum"][0].clone())).unwrap();
            assert_eq!(whole.problem, None, "{name}: nothing but its value was strange");
        }
    }
    assert!(enums > 0 && forms > 20, "{enums} enums and {forms} fields were found");
}

#[test]
fn a_pool_with_any_field_of_a_newer_version() {
    each_field::<BuilderPool>(&pool(), |name, pool| assert!(pool.spec.default || name == "spec.default"));
}

#[test]
fn an_image_build_with_any_field_of_a_newer_version() {
    each_field::<ImageBuild>(&build(), |name, build| {
        let image = build.spec.image.as_ref();
        assert!(image.is_some() || ["spec.image", "spec.image.repository"].contains(&name), "{name}");
        if let Some(image) = image {
            assert!(!image.tags.is_empty() || name.starts_with("spec.image.tags"), "{name}");
            let of_copies = name == "spec.image.copies" || name.starts_with("spec.image.copies.[]");
            assert!(!image.copies.is_empty() || of_copies, "{name}");
            assert!(!image.copies.is_empty() || !name.contains("Ref"), "{name}");
        }
        let status = build.status.as_ref().unwrap();
        assert!(!status.tags.is_empty() || name.starts_with("status.tags"), "{name}");
    });
}

#[test]
fn a_run_with_any_field_of_a_newer_version() {
    each_field::<ImageBuildRun>(&run(), |name, run| {
        let is_bare = ["spec.imageBuild", "spec.number", "spec.inputHash"].iter().any(|of| name.starts_with(of));
        assert!((run.spec.number, run.spec.image_build.uid.as_str()) == (7, "u") || is_bare, "{name}");
        assert!(
            run.spec.build.pool.is_some() || is_bare || name == "spec.build.pool" || name == "spec.build",
            "{name}"
        );
        if is_bare {
            return;
        }
        let status = run.status.as_ref().unwrap();
        assert!(!status.phase.is_final(), "{name}: {:?}", status.phase);
        let whole = "status.platforms";
        let required = [whole, "status.platforms.[]", "status.platforms.[].name"];
        let Some(platform) = status.platforms.first() else {
            assert!(required.contains(&name), "{name}");
            return;
        };
        // Its builder is at work.
        assert!(platform.phase.is_assigned() || name == "status.platforms.[].phase", "{name}");
        assert!(platform.builder.is_some() || name.starts_with("status.platforms.[].builder"), "{name}");
    });
}

#[test]
fn of_a_run_that_cannot_be_read_nothing_waits() {
    for (phases, status, expected) in [
        (json!(["Queued", "Unheard"]), json!({}), vec![PlatformPhase::Building]),
        (json!(["Unheard", "Succeeded"]), json!({"finishedAt": "2026-01-01T00:00:00.000000Z"}), {
            vec![PlatformPhase::Failed, PlatformPhase::Succeeded]
        }),
        (json!(["Unheard"]), json!({"builder": null}), vec![PlatformPhase::Failed]),
    ] {
        let mut run = run();
        let platforms = phases.as_array().unwrap().iter().enumerate().map(|(number, phase)| {
            let mut platform = run["status"]["platforms"][0].clone();
            platform["name"] = json!(format!("linux/{number}"));
            platform["phase"] = phase.clone();
            for (name, value) in status.as_object().unwrap() {
                platform[name] = value.clone();
            }
            if platform["builder"].is_null() {
                platform.as_object_mut().unwrap().remove("builder");
            }
            platform
        });
        run["status"]["platforms"] = platforms.collect();
        let read: Read<ImageBuildRun> = serde_json::from_value(run).unwrap();
        let copy = read.copy(trim::run);
        let found: Vec<_> = copy.status.iter().flat_map(|status| &status.platforms).map(|of| of.phase).collect();
        assert_eq!(found, expected, "{phases} {status}");
        assert!(!crate::watches::is_queued(&copy));
    }
    // One that nobody has looked at yet.
    let mut new = run();
    new["status"] = Value::Null;
    new["spec"]["build"]["cache"] = json!({"scope": "Unheard"});
    let read: Read<ImageBuildRun> = serde_json::from_value(new).unwrap();
    assert!(!crate::watches::is_queued(&read.copy(trim::run)));
}

#[test]
fn it_is_skipped_until_it_is_deleted() {
    let read = |deleted: bool, held: bool, phase: &str| {
        let mut run = run();
        run["status"]["phase"] = json!(phase);
        run["metadata"]["annotations"] = json!({UNREADABLE: "forged"});
        if deleted {
            run["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        if held {
            run["metadata"]["finalizers"] = json!([FINALIZER]);
        }
        let run = serde_json::from_value::<Read<ImageBuildRun>>(run).unwrap().copy(trim::run);
        assert_eq!(unreadable(&run).is_some(), phase == "Unheard");
        skipped(&run).is_some()
    };
    assert!(!read(false, true, "Building"), "it can be read");
    assert!(read(false, true, "Unheard"));
    assert!(read(true, false, "Unheard"));
    assert!(!read(true, true, "Unheard"), "its jobs are stopped, and it goes");
    let mut forged = pool();
    forged["metadata"]["annotations"] = json!({UNREADABLE: "forged"});
    let pool = serde_json::from_value::<Read<BuilderPool>>(forged).unwrap().copy(trim::managed_fields);
    assert_eq!(unreadable(&pool), None);
}

/// The API server as it lists one run that can be read and one that cannot, and tells of two more.
#[tokio::test]
async fn one_that_cannot_be_read_stops_no_watch() {
    let named = |name: &str, phase: &str| {
        let mut run = run();
        run["metadata"]["name"] = json!(name);
        run["status"]["phase"] = json!(phase);
        run
    };
    let listed = list(&[named("a", "Building"), named("b", "Unheard")]).to_string();
    let event = |run: Value| json!({"type": "ADDED", "object": run}).to_string() + "\n";
    let told = event(named("c", "Unheard")) + &event(named("d", "Building"));
    let router = Router::new().fallback(move |request: axum::extract::Request| {
        let (listed, told) = (listed.clone(), told.clone());
        async move {
            if request.uri().query().is_some_and(|query| query.contains("watch=true")) {
                let told = futures::stream::once(async { Ok::<_, std::io::Error>(told) });
                axum::body::Body::from_stream(told.chain(futures::stream::pending())).into_response()
            } else {
                listed.into_response()
            }
        }
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    let client = kube::Client::try_from(kube::Config::new(uri)).unwrap();
    let mut synced = Synced::default();
    let (store, mut changes) = watch_own::<ImageBuildRun>(&client, watcher::Config::default(), trim::run, &mut synced);
    let mut names = Vec::new();
    while names.len() < 4 {
        names.push(changes.next().await.unwrap().unwrap().name_any());
    }
    assert_eq!(names, ["a", "b", "c", "d"]);
    synced.wait().await;
    let unreadable = store.state_filter(|run| unreadable(run).is_some());
    let mut unreadable: Vec<_> = unreadable.iter().map(|run| run.name_any()).collect();
    unreadable.sort();
    assert_eq!((store.len(), unreadable), (4, vec!["b".to_owned(), "c".to_owned()]));
}
