//! The MMIO transport (virtio 1.2, section 4.2), version 2 only, and the initialization of a device
//! (section 3.1.1).

// Register layout (4.2.2).
const MAGIC: usize = 0x000;
const VERSION: usize = 0x004;
const DEVICE_ID: usize = 0x008;
const DEVICE_FEATURES: usize = 0x010;
const DEVICE_FEATURES_SEL: usize = 0x014;
const DRIVER_FEATURES: usize = 0x020;
const DRIVER_FEATURES_SEL: usize = 0x024;
const QUEUE_SEL: usize = 0x030;
const QUEUE_NUM_MAX: usize = 0x034;
const QUEUE_NUM: usize = 0x038;
const QUEUE_READY: usize = 0x044;
const QUEUE_NOTIFY: usize = 0x050;
const INTERRUPT_ACK: usize = 0x064;
const STATUS: usize = 0x070;
const QUEUE_DESCRIPTORS: usize = 0x080;
const QUEUE_DRIVER: usize = 0x090;
const QUEUE_DEVICE: usize = 0x0a0;
const CONFIG_GENERATION: usize = 0x0fc;
const CONFIG: usize = 0x100;

const MAGIC_VALUE: u32 = 0x7472_6976;
const MODERN: u32 = 2;

// Device status (2.1).
const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;

/// VIRTIO_F_VERSION_1 (section 6).
const VERSION_1: u64 = 1 << 32;

/// The registers of a device.
#[derive(Clone, Copy)]
pub struct Transport {
    base: usize,
}

impl Transport {
    /// The device at `base` and its device ID (section 5); `None` if there is no virtio device.
    pub fn probe(base: u64) -> Option<(Self, u32)> {
        let transport = Self { base: usize::try_from(base).ok()? };
        // Read no other register before these, and ignore device ID 0 (4.2.2.2).
        if transport.read(MAGIC) != MAGIC_VALUE {
            return None;
        }
        let version = transport.read(VERSION);
        assert!(
            version == MODERN,
            "virtio-mmio at {base:#x}: expected version {MODERN}, found {version} (QEMU: -global \
             virtio-mmio.force-legacy=false)"
        );
        let id = transport.read(DEVICE_ID);
        (id != 0).then_some((transport, id))
    }

    pub(super) fn read(&self, register: usize) -> u32 {
        // SAFETY: a register of the device that the command line names and the magic number
        // confirms.
        unsafe { ((self.base + register) as *const u32).read_volatile() }
    }

    pub(super) fn write(&self, register: usize, value: u32) {
        // SAFETY: as for `read`; memory of a queue that a device knows belongs to the device
        // forever.
        unsafe { ((self.base + register) as *mut u32).write_volatile(value) }
    }

    fn write_pair(&self, register: usize, value: u64) {
        self.write(register, value as u32);
        self.write(register + 4, (value >> 32) as u32);
    }

    /// Resets the device, and accepts VERSION_1 and the features in `wanted` that the device
    /// offers.
    pub fn negotiate(&self, wanted: u64) -> u64 {
        self.write(STATUS, 0);
        while self.read(STATUS) != 0 {
            core::hint::spin_loop();
        }
        self.write(STATUS, ACKNOWLEDGE);
        self.write(STATUS, ACKNOWLEDGE | DRIVER);
        self.write(DEVICE_FEATURES_SEL, 0);
        let low = u64::from(self.read(DEVICE_FEATURES));
        self.write(DEVICE_FEATURES_SEL, 1);
        let offered = u64::from(self.read(DEVICE_FEATURES)) << 32 | low;
        assert!(offered & VERSION_1 != 0, "the device is not of version 1");
        let features = offered & (wanted | VERSION_1);
        self.write(DRIVER_FEATURES_SEL, 0);
        self.write(DRIVER_FEATURES, features as u32);
        self.write(DRIVER_FEATURES_SEL, 1);
        self.write(DRIVER_FEATURES, (features >> 32) as u32);
        self.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        assert!(
            self.read(STATUS) & FEATURES_OK != 0,
            "the device refuses the features {features:#x}"
        );
        features
    }

    /// The number of entries of queue `index`, at most `wanted`, before the queue is started.
    pub(super) fn queue_size(&self, index: u32, wanted: u16) -> u16 {
        self.write(QUEUE_SEL, index);
        assert!(self.read(QUEUE_READY) == 0, "queue {index} is in use");
        let most = self.read(QUEUE_NUM_MAX);
        assert!(most != 0, "the device has no queue {index}");
        most.min(u32::from(wanted)) as u16
    }

    /// Gives the device queue `index`: its size, and the addresses of its descriptors, available
    /// ring and used ring (4.2.3.2).
    pub(super) fn start_queue(&self, index: u32, size: u16, addresses: [u64; 3]) {
        let [descriptors, driver, device] = addresses;
        self.write(QUEUE_SEL, index);
        self.write(QUEUE_NUM, u32::from(size));
        self.write_pair(QUEUE_DESCRIPTORS, descriptors);
        self.write_pair(QUEUE_DRIVER, driver);
        self.write_pair(QUEUE_DEVICE, device);
        self.write(QUEUE_READY, 1);
    }

    /// Notifies the device of new chains in queue `index`.
    pub(super) fn notify(&self, index: u32) {
        self.write(QUEUE_NOTIFY, index);
    }

    /// Sets DRIVER_OK: the device may operate from now on.
    pub fn start(&self) {
        self.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    }

    /// Acknowledges the device's interrupt, for used buffers and configuration changes (2.3,
    /// 4.2.2).
    pub fn acknowledge_interrupt(&self) {
        self.write(INTERRUPT_ACK, 3);
    }

    /// A 64-bit field of the device's configuration. Reads it again until it is consistent (2.5.1).
    pub fn config_u64(&self, offset: usize) -> u64 {
        loop {
            let before = self.read(CONFIG_GENERATION);
            let low = self.read(CONFIG + offset);
            let high = self.read(CONFIG + offset + 4);
            if self.read(CONFIG_GENERATION) == before {
                return u64::from(high) << 32 | u64::from(low);
            }
        }
    }

    /// A byte of the device's configuration.
    pub fn config_u8(&self, offset: usize) -> u8 {
        // SAFETY: as for `read`; 4.2.2.2 requires accesses of the field's own width.
        unsafe { ((self.base + CONFIG + offset) as *const u8).read_volatile() }
    }
}
