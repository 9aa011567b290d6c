use super::*;

const OFFERED: u64 = 0b101;
const ACCEPTED: u64 = OFFERED | 1 << VIRTIO_F_VERSION_1;

fn device() -> CommonConfiguration {
    CommonConfiguration::new(OFFERED, &[256, 64], 3)
}

fn read16(common: &CommonConfiguration, offset: usize) -> u16 {
    let mut data = [0; 2];
    common.read(offset, &mut data, 0);
    u16::from_le_bytes(data)
}

fn status(common: &CommonConfiguration) -> u8 {
    let mut data = [0];
    common.read(0x14, &mut data, 0);
    data[0]
}

fn set_features(common: &mut CommonConfiguration, features: u64) {
    for half in 0..2_u32 {
        common.write(0x08, &half.to_le_bytes());
        common.write(0x0c, &low_half(features >> (32 * half)).to_le_bytes());
    }
}

/// A device whose driver has agreed on its features.
fn negotiated() -> CommonConfiguration {
    let mut common = device();
    common.write(0x14, &[ACKNOWLEDGE]);
    common.write(0x14, &[ACKNOWLEDGE | DRIVER]);
    set_features(&mut common, ACCEPTED);
    common.write(0x14, &[ACKNOWLEDGE | DRIVER | FEATURES_OK]);
    assert_eq!(status(&common), ACKNOWLEDGE | DRIVER | FEATURES_OK);
    common
}

#[test]
fn both_halves_of_the_features_are_told() {
    let mut common = device();
    for (select, expected) in [(0_u32, 0b101_u32), (1, 1), (2, 0), (u32::MAX, 0)] {
        common.write(0x00, &select.to_le_bytes());
        let mut data = [0; 4];
        common.read(0x04, &mut data, 0);
        assert_eq!(u32::from_le_bytes(data), expected);
    }
    assert_eq!(read16(&common, 0x12), 2);
}

#[test]
fn the_status_machine_takes_only_its_own_steps() {
    let (a, d, f, k) = (ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK);
    // Features, the statuses written, the status and the effect at the end.
    let table: &[(u64, &[u8], u8, Effect)] = &[
        (
            ACCEPTED,
            &[a, a | d, a | d | f, a | d | f | k],
            a | d | f | k,
            Effect::Activate,
        ),
        (ACCEPTED, &[a | d | f | k], a | d | f | k, Effect::Activate),
        (
            1 << VIRTIO_F_VERSION_1,
            &[a, a | d, a | d | f],
            a | d | f,
            Effect::None,
        ),
        // Without VERSION_1, with a feature that was not offered, without DRIVER: no FEATURES_OK.
        (OFFERED, &[a, a | d, a | d | f], a | d, Effect::None),
        (
            ACCEPTED | 1 << 40,
            &[a, a | d, a | d | f],
            a | d,
            Effect::None,
        ),
        (ACCEPTED, &[a, a | f], a, Effect::None),
        // DRIVER_OK without FEATURES_OK does nothing.
        (ACCEPTED, &[a, a | d, a | d | k], a | d, Effect::None),
        (OFFERED, &[a | d | f | k], a | d, Effect::None),
        // Bits do not go away.
        (ACCEPTED, &[a, a | d, d], a | d, Effect::None),
        // The driver cannot set NEEDS_RESET, and is not listened to after FAILED.
        (ACCEPTED, &[a, a | NEEDS_RESET], a, Effect::None),
        (
            ACCEPTED,
            &[a, a | d | FAILED, a | d | f | k],
            a | d | FAILED,
            Effect::None,
        ),
        (
            ACCEPTED,
            &[a, a | d, a | d | f, a | d | f | k, 0],
            a | d | f | k,
            Effect::Reset,
        ),
    ];
    for (features, writes, expected, effect) in table {
        let mut common = device();
        set_features(&mut common, *features);
        let mut last = Effect::None;
        for value in *writes {
            last = common.write(0x14, &[*value]);
        }
        assert_eq!(
            (status(&common), last),
            (*expected, *effect),
            "{features:#x} {writes:x?}"
        );
    }
}

#[test]
fn after_an_error_only_a_reset_helps() {
    let mut common = negotiated();
    common.set_needs_reset();
    assert_eq!(common.write(0x14, &[!NEEDS_RESET]), Effect::None);
    assert!(!common.is_driver_ok());
    assert_eq!(common.write(0x14, &[0]), Effect::Reset);
    common.reset();
    assert_eq!(status(&common), 0);
    assert_eq!(common.features(), 0);
}

#[test]
fn features_are_fixed_once_they_are_agreed_on() {
    let mut common = negotiated();
    set_features(&mut common, 0);
    assert_eq!(common.features(), ACCEPTED);
}

#[test]
fn a_queue_is_set_up_in_halves_and_whole() {
    let mut common = negotiated();
    common.write(0x16, &1_u16.to_le_bytes());
    assert_eq!((read16(&common, 0x18), read16(&common, 0x1e)), (64, 1));
    common.write(0x18, &32_u16.to_le_bytes());
    common.write(0x20, &0x1000_u32.to_le_bytes());
    common.write(0x24, &1_u32.to_le_bytes());
    common.write(0x28, &0x2000_u64.to_le_bytes());
    common.write(0x30, &0x3000_u64.to_le_bytes());
    common.write(0x1c, &1_u16.to_le_bytes());
    let queues = common.build_queues().unwrap();
    assert!(!queues[0].ready() && queues[1].ready());
    let queue = &queues[1];
    assert_eq!(
        (
            queue.size(),
            queue.desc_table(),
            queue.avail_ring(),
            queue.used_ring()
        ),
        (32, 0x1_0000_1000, 0x2000, 0x3000)
    );
    // It is enabled: nothing of it changes any more.
    common.write(0x18, &16_u16.to_le_bytes());
    common.write(0x28, &0x9000_u64.to_le_bytes());
    common.write(0x1c, &0_u16.to_le_bytes());
    let queue = &common.build_queues().unwrap()[1];
    assert_eq!(
        (queue.size(), queue.avail_ring(), queue.ready()),
        (32, 0x2000, true)
    );
}

#[test]
fn sizes_that_are_none_are_ignored() {
    let mut common = negotiated();
    for size in [0_u16, 3, 512, 0xffff] {
        common.write(0x18, &size.to_le_bytes());
        assert_eq!(read16(&common, 0x18), 256);
    }
}

#[test]
fn a_misaligned_queue_is_no_queue() {
    for (offset, address) in [(0x20, 8_u64), (0x28, 1), (0x30, 2)] {
        let mut common = negotiated();
        common.write(offset, &address.to_le_bytes());
        common.write(0x1c, &1_u16.to_le_bytes());
        assert!(common.build_queues().is_none());
    }
}

#[test]
fn queues_are_not_set_up_too_early_or_too_late() {
    let mut early = device();
    early.write(0x1c, &1_u16.to_le_bytes());
    assert_eq!(early.queues_enabled().collect::<Vec<_>>(), [false, false]);
    let mut late = negotiated();
    late.write(0x14, &[ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK]);
    late.write(0x1c, &1_u16.to_le_bytes());
    assert_eq!(late.queues_enabled().collect::<Vec<_>>(), [false, false]);
}

#[test]
fn a_vector_that_is_not_there_reads_back_as_none() {
    let mut common = device();
    assert_eq!(common.write(0x10, &2_u16.to_le_bytes()), Effect::Vectors);
    assert_eq!(read16(&common, 0x10), 2);
    common.write(0x10, &3_u16.to_le_bytes());
    assert_eq!(read16(&common, 0x10), NO_VECTOR);
    common.write(0x1a, &1_u16.to_le_bytes());
    assert_eq!(common.queue_vectors().collect::<Vec<_>>(), [1, NO_VECTOR]);
    common.write(0x16, &7_u16.to_le_bytes());
    assert_eq!(common.write(0x1a, &1_u16.to_le_bytes()), Effect::None);
}

#[test]
fn hostile_accesses_do_no_harm() {
    let mut common = negotiated();
    for select in [0_u16, 2, 0xffff] {
        for offset in (0..0x48).chain([0xfff, 0x1000, usize::MAX]) {
            for length in [0, 1, 2, 3, 4, 5, 8] {
                common.write(0x16, &select.to_le_bytes());
                common.write(offset, &vec![0xff; length]);
                common.read(offset, &mut vec![0; length], 1);
            }
        }
    }
    assert_eq!(read16(&common, 0x18), 0);
}
