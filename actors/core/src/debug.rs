//! `Debug` of what cannot derive it.
//!
//! A derived one would ask it of the application's types, print commands and states of any size, or take the lock
//! around a number to print it. What is written here shows what tells one node, or one moment of it, from another.

/// `Debug` of a struct: these fields, and `..` for the others. Its parameters need no more than the struct asks of
/// them.
#[doc(hidden)]
#[macro_export]
macro_rules! debug_fields {
    ($name:ident $(<$($param:ident $(: $bound:path)?),+>)? { $($field:ident),* }) => {
        impl $(<$($param $(: $bound)?),+>)? std::fmt::Debug for $name $(<$($param),+>)? {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct(stringify!($name))
                    $(.field(stringify!($field), &self.$field))*
                    .finish_non_exhaustive()
            }
        }
    };
}
