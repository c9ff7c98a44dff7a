//! The command line: what people ask of a cluster.
//!
//! Arguments in, a table or JSON out. What a command says of what was read is a function over values; reading
//! and writing is done by [`crate::audit`], [`crate::driver`] and [`crate::store`].

mod adopt;
mod agent;
mod check;
mod claims;
mod confirm;
mod conflist;
mod connect;
mod handover;
mod import;
mod install;
mod ledger;
mod output;
mod release;
mod search;
mod show;
mod status;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use clap_complete::Shell;

use self::connect::Connection;
use self::output::Format;

/// Fixed and random pod addresses for Calico clusters.
#[derive(Parser)]
#[command(name = "kube-ipam", version, after_help = AFTER)]
struct Arguments {
    #[command(flatten)]
    connection: Connection,
    /// A table for people, or JSON or YAML for machines.
    #[arg(short, long, global = true, value_enum, default_value_t)]
    output: Format,
    #[command(subcommand)]
    command: Command,
}

const AFTER: &str = "\
Exit codes:
  0  done, and all is well
  1  check found violations, or release or handover was refused or declined
  2  an argument is wrong, something could not be read or written, or check did not look at everything

The network, its claims and its ranges are found on a node by its conflist, elsewhere by the add-on's ConfigMap
or by the IPClaims that exist; or name a list by --conflist FILE. What was not found is not checked, and check does
not report success for it.";

#[derive(Subcommand)]
enum Command {
    /// Shows pools, blocks, claims, and who uses an address.
    Show(show::Show),
    /// Checks all records against the invariants: a line for each violation.
    Check(check::Check),
    /// Lists the claims: who owns which fixed address, and which pod has it; moves them to another ledger.
    Claims(claims::Claims),
    /// Releases an address that no live pod uses.
    Release(release::Release),
    /// Evicts the old pod whose address a new one of its workload waits for, as an update does by itself.
    Handover(handover::HandoverByHand),
    /// Makes the addresses that running pods have fixed ones, without a restart.
    Adopt(adopt::Adopt),
    /// Claims the addresses of a list for workloads, before their pods ask for them.
    Import(import::Import),
    /// Prints a 10-calico.conflist. --kubeconfig, --network and --etcd-* say what goes into its ipam section.
    Conflist(Box<conflist::Conflist>),
    /// Serves this node's pods: the sidecar.
    Agent(agent::AgentArguments),
    /// Puts kube-ipam on this node: the plugin, its section of Calico's conflist, and its kubeconfig.
    Install(install::Install),
    /// Gives this node back to calico-ipam. Pods that run keep their addresses.
    Uninstall(install::Uninstall),
    /// Shows this node's agent: its caches and queues, its last errors, and who leads the collectors.
    Status(status::StatusArguments),
    /// Prints a completion script for a shell.
    Completion {
        /// The shell.
        shell: Shell,
    },
}

/// How a command ended, if it was no error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// Exit code 0.
    Well,
    /// Exit code 1: violations, a refusal, a no.
    NotWell,
    /// Exit code 2, though something was printed.
    Unread,
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        Self::from(match outcome {
            Outcome::Well => 0,
            Outcome::NotWell => 1,
            Outcome::Unread => 2,
        })
    }
}

/// Runs the command line of this process.
pub fn run() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().collect();
    let arguments = Arguments::of(words).unwrap_or_else(|error| error.exit());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = runtime.context("no runtime").and_then(|r| r.block_on(arguments.run()));
    outcome.map_or_else(
        |error| {
            eprintln!("kube-ipam: {error:#}");
            Outcome::Unread.into()
        },
        ExitCode::from,
    )
}

/// The command, under the name it was called by: as `kubectl-ipam` it is kubectl's subcommand `ipam`.
fn command(called_as: Option<&OsString>) -> clap::Command {
    let name = called_as.map(Path::new).and_then(Path::file_name);
    let command = Arguments::command();
    if name.is_some_and(|name| name == "kubectl-ipam") { command.bin_name("kubectl ipam") } else { command }
}

// === impl Arguments ===

impl Arguments {
    fn of(words: Vec<OsString>) -> Result<Self, clap::Error> {
        let mut command = command(words.first());
        let matches = command.try_get_matches_from_mut(words)?;
        Self::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
    }

    async fn run(self) -> Result<Outcome> {
        let Self { connection, output, command } = self;
        match command {
            Command::Agent(arguments) => arguments.run(&connection).await,
            Command::Install(install) => install.run().await,
            Command::Uninstall(uninstall) => uninstall.run().await,
            Command::Status(arguments) => arguments.run(&connection, output).await,
            Command::Show(show) => show.run(&connection, output).await,
            Command::Check(check) => check.run(&connection, output).await,
            Command::Claims(claims) => claims.run(&connection, output).await,
            Command::Release(release) => release.run(&connection, output).await,
            Command::Handover(handover) => handover.run(&connection, output).await,
            Command::Adopt(adopt) => adopt.run(&connection, output).await,
            Command::Import(import) => import.run(&connection, output).await,
            Command::Conflist(conflist) => conflist.run(&connection, output),
            Command::Completion { shell } => {
                let mut script = Vec::new();
                clap_complete::generate(shell, &mut Self::command(), "kube-ipam", &mut script);
                output::say(&String::from_utf8_lossy(&script))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Arguments, clap::Error> {
        Arguments::of(line.split(' ').map(OsString::from).collect())
    }

    #[test]
    fn the_arguments_are_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn connection_flags_may_stand_before_and_behind_the_command() {
        for line in
            ["kube-ipam --etcd-url http://h:1,http://i:1 check", "kube-ipam check --etcd-url http://h:1,http://i:1"]
        {
            assert_eq!(parse(line).unwrap().connection.etcd_url, ["http://h:1", "http://i:1"]);
        }
    }

    #[test]
    fn what_show_shows_is_one_thing_at_a_time() {
        assert!(parse("kube-ipam show --blocks --borrowed").is_err());
        assert!(parse("kube-ipam show --ip 10.0.0.1,10.0.0.2 --ip fd00::1").is_ok());
        let error = parse("kube-ipam show --ip 10.0.0.300").err().unwrap().to_string();
        assert!(error.contains("10.0.0.300") && error.contains("--ip") && error.contains("10.244.0.216"), "{error}");
    }

    #[test]
    fn as_a_plugin_of_kubectl_the_help_says_so() {
        let help = parse("/usr/local/bin/kubectl-ipam show --help").err().unwrap().to_string();
        assert!(help.contains("Usage: kubectl ipam show"), "{help}");
        let help = parse("kube-ipam --help").err().unwrap().to_string();
        assert!(help.contains("Usage: kube-ipam") && help.contains("Exit codes:"), "{help}");
    }
}
