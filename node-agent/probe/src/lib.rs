//! The probe program, to be sent into a sandbox over standard input.
//!
//! It is one static file without dependencies: it runs in every image of this
//! architecture, also in one that holds nothing else. What it prints is read by
//! `agent_core::probe`.

/// The program, an executable for the architecture of this build.
pub const PROGRAM: &[u8] = include_bytes!(env!("LONGSHORE_PROBE"));

#[cfg(test)]
mod tests {
    use super::PROGRAM;

    #[test]
    fn it_is_a_small_static_program() {
        assert_eq!(&PROGRAM[..4], b"\x7fELF");
        assert!(PROGRAM.len() < 2 << 20, "{} bytes", PROGRAM.len());
        // A program that needs a loader names it.
        let loader = b"/ld-linux";
        assert!(!PROGRAM.windows(loader.len()).any(|part| part == loader));
    }
}
