//! Generates the gRPC code from `proto/`, and a list of all that the contract has, for `tests/contract.rs`. `protox` compiles the files in
//! Rust, so no `protoc` is needed.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["proto/agent.proto", "proto/runner.proto", "proto/record.proto"];
    for file in files {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["proto"])?;
    let mut lines = Vec::new();
    for file in &descriptors.file {
        let package = file.package();
        for message in &file.message_type {
            // None has messages or enums within.
            lines.extend(message.field.iter().map(|field| {
                let kind = if field.type_name().is_empty() {
                    format!("{:?}", field.r#type())
                } else {
                    field.type_name().to_owned()
                };
                format!("{package}.{} {} = {} {:?} {kind}", message.name(), field.name(), field.number(), field.label())
            }));
        }
        for kind in &file.enum_type {
            lines.extend(
                kind.value
                    .iter()
                    .map(|value| format!("{package}.{} {} = {}", kind.name(), value.name(), value.number())),
            );
        }
        for service in &file.service {
            lines.extend(service.method.iter().map(|method| {
                let stream = |is: bool| if is { "stream " } else { "" };
                let (of, to) = (stream(method.client_streaming()), stream(method.server_streaming()));
                format!(
                    "{package}.{} {}({of}{}) returns ({to}{})",
                    service.name(),
                    method.name(),
                    method.input_type(),
                    method.output_type()
                )
            }));
        }
    }
    lines.sort();
    std::fs::write(PathBuf::from(std::env::var("OUT_DIR")?).join("contract.txt"), lines.join("\n") + "\n")?;
    tonic_prost_build::configure().codec_path("crate::codec::SmallBuffers").compile_fds(descriptors)?;
    Ok(())
}
