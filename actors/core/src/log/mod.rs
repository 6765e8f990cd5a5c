//! The log as the core sees it. [`store`] is the contract with whoever keeps it, [`view`] what the core decides by, and
//! [`sizes`] how large it is where.

pub mod store;
pub mod view;
pub mod sizes;
