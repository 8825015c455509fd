//! What a BuilderPool may say.

use kiln_crds::BuilderPool;
use serde_json::json;

use super::{ARGUMENT, DURATION, MANY, SHORT, TWICE, list, many, text, try_all};

kiln_e2e::tests![pools];

async fn pools() {
    const HOST: Option<&str> = Some("spec.registries[0].host");
    const MIRROR: Option<&str> = Some("spec.registries[0].mirrors[0]");
    let good = json!({
        "metadata": {"name": "good"},
        "spec": {"registries": [{"host": "docker.io", "mirrors": ["mirror.example:5000/docker.io"]}], "caRefs": [{"name": "c"}]},
    });
    try_all::<BuilderPool>(
        false,
        &good,
        &[
            ("/spec/default", json!(true), None),
            ("/metadata/name", text(40), None),
            ("/metadata/name", text(41), Some("metadata.name is too long: use at most 40 characters")),
            ("/spec/architectures", json!(["amd64", "arm64"]), None),
            ("/spec/architectures", json!([]), Some("should have at least 1 items")),
            ("/spec/architectures", json!(["amd64", "amd64"]), TWICE),
            ("/spec/architectures", list(17, |number| json!(format!("a{number}"))), MANY),
            ("/spec/securityProfile", json!("Rootless"), None),
            (
                "/spec/securityProfile",
                json!("Privileged"),
                Some("supported values: \"Auto\", \"UserNamespace\", \"Rootless\""),
            ),
            ("/spec/maxBuilders", json!(0), Some("greater than or equal to 1")),
            ("/spec/maxBuilders", json!(1001), Some("less than or equal to 1000")),
            ("/spec/maxJobsPerBuilder", json!(0), Some("greater than or equal to 1")),
            ("/spec/maxJobsPerBuilder", json!(65), Some("less than or equal to 64")),
            ("/spec/limits", json!({"buildersPerNamespace": 0}), Some("greater than or equal to 1")),
            ("/spec/idleTimeout", json!("0s"), None),
            ("/spec/idleTimeout", json!("half an hour"), DURATION),
            // What no program can hold.
            ("/spec/idleTimeout", json!("99999999999h"), DURATION),
            ("/spec/schedulingTimeout", json!("10"), DURATION),
            ("/spec/cache", json!({"size": "10Gi", "storageClassName": "fast", "retention": "168h"}), None),
            ("/spec/cache", json!({"size": "0"}), None),
            ("/spec/cache", json!({"size": 0}), None),
            ("/spec/cache", json!({"size": "large"}), Some("cache.size is a quantity such as 20Gi")),
            ("/spec/cache", json!({"size": "-1Gi"}), Some("cache.size is a quantity such as 20Gi")),
            ("/spec/cache", json!({"retention": "7d"}), DURATION),
            ("/spec/template", json!({"nodeSelector": many(129)}), Some("must have at most 128")),
            ("/spec/template", json!({"tolerations": list(33, |_| json!({"operator": "Exists"}))}), MANY),
            ("/spec/registries/0/host", json!("https://docker.io"), HOST),
            ("/spec/registries/0/host", json!("docker.io/library"), HOST),
            ("/spec/registries/0/host", json!("registry.example:5000"), None),
            ("/spec/registries/0/mirrors", json!(["https://mirror.example"]), MIRROR),
            ("/spec/registries/0/mirrors", list(9, |number| json!(format!("m{number}"))), MANY),
            ("/spec/registries", list(2, |_| json!({"host": "docker.io"})), TWICE),
            ("/spec/registries/0/plainHttp", json!(true), None),
            ("/spec/registries/0/secretRef", json!({"name": "mirror-login"}), None),
            ("/spec/registries/0/secretRef", json!({"name": ""}), SHORT),
            ("/spec/minBuilders", json!(0), None),
            ("/spec/minBuilders", json!(17), Some("less than or equal to 16")),
            ("/spec/defaultArgs", json!({"HTTPS_PROXY": "http://proxy.example:3128"}), None),
            ("/spec/defaultArgs", json!({"HTTPS-PROXY": ""}), ARGUMENT),
            ("/spec/defaultArgs", many(129), Some("must have at most 128")),
            ("/spec/archives", json!({"claimName": "archives"}), None),
            ("/spec/archives", json!({}), Some("spec.archives.claimName")),
            ("/spec/archives", json!({"claimName": ""}), SHORT),
            ("/spec/allow", json!({"frontends": true, "emulation": true, "privateAddresses": false}), None),
            ("/spec/allow", json!({"emulation": "yes"}), Some("must be of type boolean")),
            ("/spec/caRefs/0", json!({}), Some("spec.caRefs[0].name")),
            ("/spec/caRefs", list(17, |number| json!({"name": format!("c{number}")})), MANY),
        ],
    )
    .await;
}
