//! Keeps a token in a static, where every device finds it.

use core::cell::OnceCell;

use io_gate::{ConsoleTx, EffectToken};

pub(crate) static SPARE: OnceCell<EffectToken<'static, 'static, ConsoleTx>> = OnceCell::new();
