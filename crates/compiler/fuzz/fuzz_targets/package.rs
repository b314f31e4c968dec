//! Any bytes as a pipeline file: read, compile, and hold what every compiled Workflow has to hold.
#![no_main]

use kfp_compiler::{Options, Package, check, compile};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    // The last byte chooses the way in, so that archives are reached too; files that end in a line end are text.
    let Some((way, bytes)) = data.split_last() else { return };
    let package = match way % 4 {
        0 => Package::parse(bytes, "pipeline.tar.gz"),
        1 => Package::parse(bytes, "pipeline.zip"),
        _ => Package::from_text(bytes),
    };
    let Ok(package) = package else { return };
    let stored = package.to_yaml();
    match Package::from_text(stored.as_bytes()) {
        Ok(again) => assert_eq!(again.to_yaml(), stored, "stored text reads back as another pipeline"),
        Err(error) => panic!("stored text does not read back: {error}\n{stored}"),
    }
    match compile(&package, &Options::default()) {
        Ok(workflow) => {
            if let Err(problems) = check::workflow(&workflow) {
                panic!("{}", problems.join("; "));
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
