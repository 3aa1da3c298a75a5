//! Includes a file from elsewhere.

macro_rules! module {
    ($(#[$attribute:meta])* $name:ident) => {
        $(#[$attribute])*
        pub(crate) mod $name;
    };
}

module! {
    #[path = "../../aside/hidden.rs"]
    hidden
}
