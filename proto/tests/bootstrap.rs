//! The checked-in bindings are what the `.proto` files say.

use std::{fs, path::Path};

use prost::Message;

const FILES: &[&str] = &[
    "longshore/v1/types.proto",
    "longshore/v1/node.proto",
    "longshore/v1/fleet.proto",
    "longshore/v1/admin.proto",
    "longshore/store/v1/facts.proto",
];
/// Messages with a secret in them.
const SECRET: &[&str] = &[
    ".longshore.v1.Registration",
    ".longshore.v1.EnrollRequest",
    ".longshore.v1.CreateJoinTokenResponse",
    ".longshore.v1.CreateTokenResponse",
];
const OUTPUTS: &[&str] = &[
    "longshore.v1.rs",
    "longshore.store.v1.rs",
    "descriptors.bin",
];

#[test]
fn generated_code_is_current() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let fresh = tempfile::tempdir().expect("temporary folder");
    generate(root, fresh.path());

    let checked_in = root.join("src/gen");
    if std::env::var_os("BLESS").is_some() {
        fs::create_dir_all(&checked_in).expect("src/gen");
        for name in OUTPUTS {
            fs::copy(fresh.path().join(name), checked_in.join(name)).expect("copy generated file");
        }
        return;
    }
    for name in OUTPUTS {
        let want = fs::read(fresh.path().join(name)).expect("generated file");
        let have = fs::read(checked_in.join(name)).unwrap_or_default();
        assert!(
            want == have,
            "proto/src/gen/{name} is stale: run BLESS=1 cargo test -p longshore-proto"
        );
    }
}

fn generate(root: &Path, out: &Path) {
    let set = protox::compile(FILES, [root]).expect("valid .proto files");
    // Comments are for the bindings; reflection does not need them.
    let mut bare = set.clone();
    for file in &mut bare.file {
        file.source_code_info = None;
    }
    fs::write(out.join("descriptors.bin"), bare.encode_to_vec()).expect("descriptors");
    tonic_prost_build::configure()
        .out_dir(out)
        // What holds a secret has no Debug that could print it; src/secret.rs gives it one.
        .skip_debug(SECRET)
        .compile_fds(set)
        .expect("bindings");
}
