//! The user's guide: one chapter for each task, in reading order. Every example in it is compiled with the tests, and
//! run where it needs no port.

#[doc = include_str!("../docs/guide/first-application.md")]
pub mod first_application {}
#[doc = include_str!("../docs/guide/state-machine.md")]
pub mod state_machine {}
#[doc = include_str!("../docs/guide/reads.md")]
pub mod reads {}
#[doc = include_str!("../docs/guide/errors.md")]
pub mod errors {}
#[doc = include_str!("../docs/guide/subscriptions.md")]
pub mod subscriptions {}
#[doc = include_str!("../docs/guide/leader-only-work.md")]
pub mod leader_only_work {}
#[doc = include_str!("../docs/guide/http.md")]
pub mod http {}
#[doc = include_str!("../docs/guide/testing.md")]
pub mod testing {}
#[doc = include_str!("../docs/guide/upgrading.md")]
pub mod upgrading {}
#[doc = include_str!("../docs/guide/binary.md")]
pub mod binary {}
#[doc = include_str!("../docs/guide/deploying.md")]
pub mod deploying {}
#[doc = include_str!("../docs/guide/settings.md")]
pub mod settings {}
#[doc = include_str!("../docs/guide/disk-and-memory.md")]
pub mod disk_and_memory {}
#[doc = include_str!("../docs/guide/operating.md")]
pub mod operating {}
#[doc = include_str!("../docs/guide/disaster-recovery.md")]
pub mod disaster_recovery {}
#[doc = include_str!("../docs/guide/how-it-works.md")]
pub mod how_it_works {}
#[doc = include_str!("../docs/guide/figures.md")]
pub mod figures {}
#[doc = include_str!("../docs/guide/limits.md")]
pub mod limits {}
#[doc = include_str!("../docs/guide/coming-from.md")]
pub mod coming_from {}
