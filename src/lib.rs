//! Patchwarden.
