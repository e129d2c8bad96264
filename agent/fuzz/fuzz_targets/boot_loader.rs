#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| patchwarden_agent::fuzzing::boot_loader(bytes));
