//! Keeps a borrow beyond its call: the compiler accepts a bound without a proof.

trait Same {
    type Itself;
}

impl<T: Sized> Same for T {
    type Itself = ();
}

trait Lengthen<'a, 'b> {
    fn lengthen(self, bytes: &'b mut [u8]) -> &'a mut [u8];
}

impl<'a, 'b> Lengthen<'a, 'b> for <&'a &'b () as Same>::Itself
where
    for<'x> &'x &'b (): Sized,
{
    fn lengthen(self, bytes: &'b mut [u8]) -> &'a mut [u8] {
        bytes
    }
}

pub(crate) fn keep(bytes: &mut [u8]) -> &'static mut [u8] {
    ().lengthen(bytes)
}
