//! Generates the gRPC code from the proto files with a compiler written in Rust, so no `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    const FILES: [&str; 2] = ["agent.proto", "buildkitd.proto"];
    for file in FILES {
        println!("cargo::rerun-if-changed={file}");
    }
    let descriptors = protox::compile(FILES, ["."])?;
    tonic_prost_build::configure()
        // Jobs carry credentials: no derived Debug may ever print one.
        .skip_debug([
            "kiln.agent.v1.Job",
            "kiln.agent.v1.StartRequest",
            "kiln.agent.v1.Login",
            "kiln.agent.v1.GitSource",
            "kiln.agent.v1.HttpSource",
            "kiln.agent.v1.Source",
            "kiln.agent.v1.Context",
        ])
        // Much larger than an image's name.
        .boxed("kiln.agent.v1.Context.kind.git")
        .compile_fds(descriptors)?;
    Ok(())
}
