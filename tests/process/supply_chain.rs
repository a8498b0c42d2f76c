//! The bill of materials in the program, and the versions that the pages name.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use miniz_oxide::inflate::decompress_to_vec_zlib;

use crate::support::prelude::*;

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A file of the project; nothing where there is none.
fn file(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap_or_default()
}

/// The names and versions between `before` and `after`, with `amid` between them.
fn packages<'a>(text: &'a str, [before, amid, after]: [&str; 3]) -> BTreeSet<(&'a str, &'a str)> {
    let package = |rest: &'a str| {
        let (name, rest) = rest.split_once(amid)?;
        Some((name, rest.split_once(after)?.0))
    };
    text.split(before).skip(1).filter_map(package).collect()
}

#[test]
fn the_program_names_what_it_is_made_of() {
    if !SHIPS {
        return;
    }
    let elf = Elf::of_the_program();
    let packed = elf.section(".dep-v0").expect("a section that `.build/auditable` puts there");
    let bom = String::from_utf8(decompress_to_vec_zlib(packed).expect("zlib")).expect("text");
    println!("{} bytes for {bom}", packed.len());
    assert!(bom.starts_with("{\"packages\":[{") && bom.ends_with('}'), "{bom}");
    let named = packages(&bom, ["{\"name\":\"", "\",\"version\":\"", "\",\"source\":\""]);
    assert_eq!(named.len(), bom.matches("\"name\"").count(), "{bom}");

    let lock = file("Cargo.lock");
    let locked = packages(&lock, ["\nname = \"", "\"\nversion = \"", "\"\n"]);
    assert!(named.is_subset(&locked), "not in Cargo.lock: {:?}", &named - &locked);
    let names: BTreeSet<_> = named.iter().map(|package| package.0).collect();
    for name in ["envoy-shutdown-manager", "lexopt", "tiny_http", "ureq"] {
        assert!(names.contains(name), "{name} is not in {names:?}");
    }
    for name in ["loom", "miniz_oxide", "serde_json", "socket2", "tempfile"] {
        assert!(lock.contains(&format!("\nname = \"{name}\"\n")), "{name} is no dependency");
        assert!(!names.contains(name), "{name} is of the tests alone");
    }
}

#[test]
fn every_version_that_is_named_is_the_manifests() {
    let changelog = file(".github/CHANGELOG.md");
    let (_, changes) = changelog.split_once("\n## ").expect("a version in the changelog");
    assert_eq!(changes.split([',', '\n']).next(), Some(VERSION), "the newest one");
    let mut tags = 0;
    for name in ["README.md", "src/manual/kubernetes.md", "Containerfile", "Justfile"] {
        for rest in file(name).split("/envoy-shutdown-manager:").skip(1) {
            let tag = rest.split(|c: char| !c.is_ascii_alphanumeric() && !".-_".contains(c)).next();
            let is_one = |tag: &&str| tag.starts_with(|first: char| first.is_ascii_digit());
            let Some(tag) = tag.filter(is_one) else { continue };
            assert_eq!(tag, VERSION, "in {name}");
            tags += 1;
        }
    }
    assert!(tags > 0, "no page names an image");
}
