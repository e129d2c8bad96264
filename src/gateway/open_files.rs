//! How many files and connections the process may have open.
//!
//! Each agent's session is one. Whoever starts programs mostly allows them 1,024, and more if they ask (getrlimit(2), systemd.exec(5)
//! `LimitNOFILE`); a gateway that has none left can open its database no more either.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Below this it is told: a thousand agents need about as many.
const FEW: u64 = 4096;

/// Asks for as many as there may be, and tells how many that are.
pub fn allow_all() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
    {
        tracing::warn!(%error, "the limit of open files cannot be raised");
    }
    match getrlimit(Resource::Nofile).current {
        Some(limit) if limit < FEW => {
            tracing::warn!(limit, "few files may be open: each agent's session is one (ulimit -Hn, LimitNOFILE)");
        }
        Some(limit) => tracing::info!(limit, "so many files may be open, each agent's session is one"),
        None => tracing::info!("any number of files may be open"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_files_may_be_open_as_whoever_started_it_allows() {
        let maximum = getrlimit(Resource::Nofile).maximum;
        // Not so low that other tests have too few.
        let lower = Some(maximum.map_or(1 << 20, |limit| limit - 1));
        setrlimit(Resource::Nofile, Rlimit { current: lower, maximum }).unwrap();
        assert_eq!(getrlimit(Resource::Nofile).current, lower);
        allow_all();
        assert_eq!(getrlimit(Resource::Nofile).current, maximum);
    }
}
