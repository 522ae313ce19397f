//! Tells the linker which instructions to use.

fn main() {
    // v3 (Linux 5.1): 32-bit registers and jumps. Misaligned access: headers stand at odd offsets,
    // and without it LLVM reads an address of four bytes in four loads. The kernel allows it on
    // packets wherever the machine does (CONFIG_HAVE_EFFICIENT_UNALIGNED_ACCESS), as x86-64 and
    // arm64 do.
    println!("cargo:rustc-link-arg-bins=--cpu-features=+allows-misaligned-mem-access");
}
