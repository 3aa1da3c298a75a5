//! Test, in the nested lab: a stock kernel loses its host while it boots. The guest's network is a
//! tap.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use xtask_common::build;

use super::{LabImages, LabSpec, run};
use crate::guest::{KernelChoice, Preparation};

#[test]
#[ignore = "boots an emulated host with guests in it"]
fn a_stock_kernel_survives_the_death_of_its_host_while_it_boots() {
    let say = |line: &str| println!("{line}");
    let preparation = Preparation::begin(&say).unwrap();
    let guest = preparation.linux_guest(KernelChoice::Cloud).unwrap();
    let images = LabImages::prepare(&preparation, &guest).unwrap();
    let kemari = build::static_kemari().unwrap();
    let script = build::repository().join("tests/guests/linux/failover-while-booting");
    let mut spec = LabSpec::new("boot", "sh ./failover-while-booting 1:1 2:4 1:6")
        .linux_guest(&guest, &["root.ext4"])
        .file(kemari, "kemari")
        .file(script, "failover-while-booting");
    // A stage of a round takes minutes on a loaded machine.
    spec.stall = Duration::from_secs(240);
    spec.timeout = Duration::from_secs(1200);
    let mut passed = 0;
    let mut show = |line: &str| {
        println!("{line}");
        // A lab that stalled is booted once more, and the script starts again.
        if line.starts_with("LAB retry of ") {
            passed = 0;
        }
        passed += usize::from(line.starts_with("PASSED"));
    };
    let (status, _) = run(&images, &spec, &mut show).unwrap();
    assert_eq!((status, passed), (0, 3));
}
