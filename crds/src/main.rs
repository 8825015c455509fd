//! Writes the generated CustomResourceDefinitions to `crds/yaml/`.

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("yaml");
    for (name, content) in kiln_crds::manifest::files()? {
        std::fs::write(folder.join(name), content)?;
    }
    Ok(())
}
