//! The decision core, from outside: golden traces of scenarios, properties over generated fleets, and calendar
//! arithmetic against another implementation.

mod ahead;
mod blast;
mod converges;
mod edges;
mod expressions;
mod fleet;
mod forecasts;
mod golden;
mod gone;
mod installs;
mod kept;
mod mended;
mod news;
mod planner;
mod properties;
mod purity;
mod reference;
mod scenario;
mod simulation;
mod turns;
mod vectors;

// musl's own allocator takes a good part of the time of thousands of fleets.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
