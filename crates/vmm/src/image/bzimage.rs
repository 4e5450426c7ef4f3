//! Gets the ELF `vmlinux` out of a bzImage, because QEMU's PVH boot of it reaches PID 1 in two thirds of the time.
//!
//! Only an LZ4 payload (Debian's cloud kernels) is taken out; a kernel packed otherwise boots as it is. The format:
//! Documentation/arch/x86/boot of the Linux kernel; LZ4's legacy frames: lz4_Frame_format.md, "Legacy frame".

const SETUP_SECTORS_AT: usize = 0x1f1;
const BOOT_FLAG_AT: usize = 0x1fe;
const HEADER_MAGIC_AT: usize = 0x202;
const VERSION_AT: usize = 0x206;
const PAYLOAD_OFFSET_AT: usize = 0x248;
const PAYLOAD_LENGTH_AT: usize = 0x24c;
/// The first boot protocol that says where the payload is.
const VERSION_WITH_PAYLOAD: u16 = 0x0208;
const SECTOR_BYTES: usize = 512;

const LZ4_LEGACY_MAGIC: [u8; 4] = 0x184C_2102u32.to_le_bytes();
/// What one block of a legacy frame unpacks to, at most.
const LZ4_BLOCK_BYTES_MAX: usize = 8 << 20;
/// The kernel's build appends the unpacked size to the payload.
const SIZE_SUFFIX_BYTES: usize = 4;
const VMLINUX_BYTES_MAX: usize = 512 << 20;

const ELF_MAGIC: &[u8] = b"\x7fELF";
const ELF_MACHINE_AT: usize = 18;
#[cfg(target_arch = "x86_64")]
const ELF_MACHINE: u16 = 62;
#[cfg(not(target_arch = "x86_64"))]
const ELF_MACHINE: u16 = 183;

/// Why bytes are no kernel.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BzImageError {
    #[error("it is neither an ELF vmlinux nor a bzImage")]
    NotAKernel,
    #[error("it is an ELF file of another machine ({0})")]
    OtherMachine(u16),
    #[error("it ends too early")]
    Truncated,
    #[error("its payload is damaged: {0}")]
    Damaged(String),
}

/// The vmlinux in `kernel`. None if `kernel` boots as it is: a vmlinux, or a bzImage that is packed otherwise.
pub(crate) fn unpack(kernel: &[u8]) -> Result<Option<Vec<u8>>, BzImageError> {
    if kernel.starts_with(ELF_MAGIC) {
        return check_machine(kernel).map(|()| None);
    }
    let is_bzimage = u16_at(kernel, BOOT_FLAG_AT) == Some(0xaa55)
        && kernel.get(HEADER_MAGIC_AT..HEADER_MAGIC_AT + 4) == Some(b"HdrS".as_slice());
    if !is_bzimage {
        return Err(BzImageError::NotAKernel);
    }
    if u16_at(kernel, VERSION_AT).ok_or(BzImageError::Truncated)? < VERSION_WITH_PAYLOAD {
        return Ok(None);
    }
    let payload = payload(kernel).ok_or(BzImageError::Truncated)?;
    let Some(packed) = payload.strip_prefix(&LZ4_LEGACY_MAGIC) else { return Ok(None) };
    let (blocks, size) = packed.split_last_chunk::<SIZE_SUFFIX_BYTES>().ok_or(BzImageError::Truncated)?;
    let vmlinux = unpack_blocks(blocks, u32::from_le_bytes(*size) as usize)?;
    if !vmlinux.starts_with(ELF_MAGIC) {
        return Err(BzImageError::Damaged("what is packed is not an ELF file".into()));
    }
    check_machine(&vmlinux)?;
    Ok(Some(vmlinux))
}

fn payload(kernel: &[u8]) -> Option<&[u8]> {
    // 0 means 4, for the sake of very old kernels.
    let setup_sectors = match *kernel.get(SETUP_SECTORS_AT)? {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let begin = (setup_sectors + 1) * SECTOR_BYTES + u32_at(kernel, PAYLOAD_OFFSET_AT)?;
    kernel.get(begin..begin.checked_add(u32_at(kernel, PAYLOAD_LENGTH_AT)?)?)
}

/// Memory grows with what was really unpacked, not with what `size` promises.
fn unpack_blocks(mut blocks: &[u8], size: usize) -> Result<Vec<u8>, BzImageError> {
    if size > VMLINUX_BYTES_MAX {
        return Err(BzImageError::Damaged(format!("{size} bytes unpacked are more than {VMLINUX_BYTES_MAX}")));
    }
    let mut unpacked = Vec::new();
    while let Some((length, rest)) = blocks.split_first_chunk::<4>() {
        let (block, rest) =
            rest.split_at_checked(u32::from_le_bytes(*length) as usize).ok_or(BzImageError::Truncated)?;
        blocks = rest;
        let begin = unpacked.len();
        let room = LZ4_BLOCK_BYTES_MAX.min(size - begin);
        unpacked.resize(begin + room, 0);
        let count = lz4_flex::block::decompress_into(block, &mut unpacked[begin..])
            .map_err(|error| BzImageError::Damaged(error.to_string()))?;
        unpacked.truncate(begin + count);
    }
    if unpacked.len() != size {
        return Err(BzImageError::Damaged(format!("{} bytes unpacked instead of {size}", unpacked.len())));
    }
    Ok(unpacked)
}

fn check_machine(elf: &[u8]) -> Result<(), BzImageError> {
    match u16_at(elf, ELF_MACHINE_AT).ok_or(BzImageError::Truncated)? {
        ELF_MACHINE => Ok(()),
        other => Err(BzImageError::OtherMachine(other)),
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<usize> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?) as usize)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Enough of an ELF file to pass for one.
    pub(crate) fn tiny_vmlinux() -> Vec<u8> {
        let mut elf = ELF_MAGIC.to_vec();
        elf.resize(64, 0);
        elf[ELF_MACHINE_AT..ELF_MACHINE_AT + 2].copy_from_slice(&ELF_MACHINE.to_le_bytes());
        elf
    }

    fn bzimage(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 2 * SECTOR_BYTES];
        image[SETUP_SECTORS_AT] = 1;
        image[BOOT_FLAG_AT..BOOT_FLAG_AT + 2].copy_from_slice(&[0x55, 0xaa]);
        image[HEADER_MAGIC_AT..HEADER_MAGIC_AT + 4].copy_from_slice(b"HdrS");
        image[VERSION_AT..VERSION_AT + 2].copy_from_slice(&0x020fu16.to_le_bytes());
        image[PAYLOAD_OFFSET_AT..PAYLOAD_OFFSET_AT + 4].copy_from_slice(&16u32.to_le_bytes());
        image[PAYLOAD_LENGTH_AT..PAYLOAD_LENGTH_AT + 4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        image.extend_from_slice(&[0xee; 16]);
        image.extend_from_slice(payload);
        image.extend_from_slice(&[0xee; 8]);
        image
    }

    fn legacy_lz4(content: &[u8], block_bytes: usize) -> Vec<u8> {
        let mut packed = LZ4_LEGACY_MAGIC.to_vec();
        for block in content.chunks(block_bytes) {
            let block = lz4_flex::block::compress(block);
            packed.extend_from_slice(&(block.len() as u32).to_le_bytes());
            packed.extend_from_slice(&block);
        }
        packed.extend_from_slice(&(content.len() as u32).to_le_bytes());
        packed
    }

    #[test]
    fn the_payload_comes_out_whole_over_several_blocks() {
        let mut vmlinux = tiny_vmlinux();
        vmlinux.extend((0..100_000u32).flat_map(u32::to_le_bytes));
        assert_eq!(unpack(&bzimage(&legacy_lz4(&vmlinux, 50_000))), Ok(Some(vmlinux.clone())));
        assert_eq!(unpack(&vmlinux), Ok(None), "a vmlinux boots as it is");
        assert_eq!(unpack(&bzimage(b"\x1f\x8b gzip")), Ok(None), "a kernel packed otherwise boots as it is");
    }

    #[test]
    fn damage_is_named() {
        let good = legacy_lz4(&tiny_vmlinux(), 1 << 20);
        let mut wrong_size = good.clone();
        *wrong_size.last_mut().unwrap() = 0x7f;
        assert!(matches!(unpack(&bzimage(&wrong_size)), Err(BzImageError::Damaged(_))));
        let whole = bzimage(&good);
        assert_eq!(
            unpack(&whole[..whole.len() - 9]),
            Err(BzImageError::Truncated),
            "the payload's last byte is missing"
        );
        let mut long_block = good.clone();
        long_block[4] += 1;
        assert_eq!(unpack(&bzimage(&long_block)), Err(BzImageError::Truncated));
        assert_eq!(unpack(b"hello"), Err(BzImageError::NotAKernel));
        let text = legacy_lz4(&[b'x'; 100], 1 << 20);
        assert!(matches!(unpack(&bzimage(&text)), Err(BzImageError::Damaged(_))));
        let mut foreign = tiny_vmlinux();
        foreign[ELF_MACHINE_AT] = 8;
        assert_eq!(unpack(&foreign), Err(BzImageError::OtherMachine(8)));
    }

    proptest! {
        #[test]
        fn any_payload_is_survived(payload in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = unpack(&payload);
            let _ = unpack(&bzimage(&payload));
            let _ = unpack(&bzimage(&[&LZ4_LEGACY_MAGIC[..], &payload].concat()));
        }
    }
}
