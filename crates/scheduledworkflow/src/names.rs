//! Deterministic names of the runs of a schedule.

/// Name of the run number `index`: `{schedule}-{index}-{hash}`, the hash being FNV-1a (32 bit) of what stands before it.
///
/// The same slot always has the same name, so that a submission which is repeated after a crash is recognised.
#[must_use]
pub fn run_name(schedule: &str, index: i64) -> String {
    let id = format!("{schedule}-{index}");
    let hash = fnv1a(id.as_bytes());
    format!("{id}-{hash}")
}

fn fnv1a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    #[test]
    fn name_is_the_one_that_upstream_gives() {
        assert_eq!(super::run_name("SCHEDULE1", 1), "SCHEDULE1-1-3321103997");
    }
}
