//! Writes what is generated from the types: the CustomResourceDefinitions in `crds/yaml/`, and the BuilderPool's part of
//! the chart's `values.schema.json`.

use std::path::Path;

use kiln_crds::{manifest, values_schema};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = root.join("yaml");
    for (name, content) in manifest::files()? {
        std::fs::write(folder.join(name), content)?;
    }
    let schema = root.join(values_schema::PATH);
    std::fs::write(&schema, values_schema::rewrite(&std::fs::read_to_string(&schema)?)?)?;
    Ok(())
}
