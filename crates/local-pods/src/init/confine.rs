//! Keeps a container that has no mount tree of its own from writing outside the places that are its own.

use std::path::Path;

use landlock::{
    ABI, AccessFs, CompatLevel, Compatible as _, PathBeneath, PathFd, Ruleset, RulesetAttr as _,
    RulesetCreatedAttr as _, RulesetError,
};

/// Devices (also shared memory) and what a process says about itself.
const SYSTEM: [&str; 2] = ["/dev", "/proc"];

/// From now on this process and its children can write below these places only. Does nothing where the kernel has
/// no Landlock, or one that would forbid renaming between directories altogether (before 5.19).
///
/// # Errors
/// A sentence that says what the kernel refused.
pub(super) fn writes(places: impl Iterator<Item = impl AsRef<Path>>) -> Result<(), String> {
    restrict(places).map_err(|error| format!("restrict writing: {error}"))
}

fn restrict(places: impl Iterator<Item = impl AsRef<Path>>) -> Result<(), RulesetError> {
    let write = AccessFs::from_write(ABI::V3);
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::SoftRequirement)
        .handle_access(AccessFs::Refer)?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(write)?
        .create()?;
    let system = SYSTEM.iter().map(|place| Path::new(place).to_path_buf());
    for place in places.map(|place| place.as_ref().to_path_buf()).chain(system) {
        // What does not exist cannot be written below either.
        if let Ok(place) = PathFd::new(place) {
            rules = rules.add_rule(PathBeneath::new(place, write))?;
        }
    }
    rules.restrict_self().map(drop)
}
