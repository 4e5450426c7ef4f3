//! What only the simulator's build of the pure crates has: mistakes that can be planted, and marks that count rare
//! states.
//!
//! Both are calls in the code that they concern: `if planted(Plant::...)` and `mark(Mark::...)`. Without the feature
//! `simulation` the first is the constant `false` and the second is empty, so that the product holds neither. With it,
//! both speak of the thread they run on: a simulated world runs on one thread from its first moment to its last.

mod mark;
mod plant;

pub use mark::{Mark, mark, mark_if};
pub use plant::{Plant, planted};

#[cfg(feature = "simulation")]
pub use mark::take_marks;
#[cfg(feature = "simulation")]
pub use plant::{plant, with_plant};

/// Defines an enum of unit variants with the name and the meaning of each, and the list of all.
macro_rules! table {
    ($(#[$doc:meta])* $table:ident { $($variant:ident $name:literal $meaning:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        pub enum $table {
            $(#[doc = $meaning] $variant,)*
        }

        impl $table {
            /// All of them, in the order of their definition.
            pub const ALL: &[$table] = &[$($table::$variant,)*];

            /// Its name on command lines and in reports.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $($table::$variant => $name,)*
                }
            }

            /// What it means, in a sentence.
            #[must_use]
            pub const fn meaning(self) -> &'static str {
                match self {
                    $($table::$variant => $meaning,)*
                }
            }
        }
    };
}
pub(crate) use table;
