//! The CNI executable: environment and stdin in, one JSON document out.
//!
//! The node's agent is asked first, by one blocking exchange over its socket; without an agent the same call
//! runs here, in direct mode. Whatever comes in, what goes out is an answer or a CNI error with a code; nothing
//! panics and nothing is written before the input is known to be right.

mod direct;
mod log;
mod messenger;

use std::io::{Read, Write};
use std::process::ExitCode;

use serde_json::Value;

use crate::cni::{CniError, CniVersion, READ_STDIN_LIMIT, Verb, code, invocation, parse_stdin, version_answer};
use crate::netconf::NetConf;
use crate::protocol::{CALL_VARIABLES, Request};

/// Serves the CNI call that the environment describes. `called_as` is the name of the executable.
pub fn run(called_as: &str) -> ExitCode {
    let mut version = None;
    match serve(called_as, &mut version) {
        Ok(answer) => print(answer.as_ref(), ExitCode::SUCCESS),
        Err(error) => print(Some(&error.to_json(version)), ExitCode::FAILURE),
    }
}

fn print(json: Option<&Value>, exit: ExitCode) -> ExitCode {
    let Some(json) = json else { return exit };
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{json}").and_then(|()| out.flush()) {
        Ok(()) => exit,
        // Nobody reads the answer any more: the runtime will call DEL.
        Err(_) => ExitCode::FAILURE,
    }
}

fn serve(called_as: &str, version: &mut Option<CniVersion>) -> Result<Option<Value>, CniError> {
    let call = invocation(|name| std::env::var_os(name))?;
    if call.verb == Verb::Version {
        return Ok(Some(version_answer()));
    }
    let conf = parse_stdin(&stdin()?)?;
    let spoken = CniVersion::of(&conf)?;
    *version = Some(spoken);
    spoken.knows(call.verb)?;
    let variables = CALL_VARIABLES.iter().filter_map(|name| Some(((*name).to_owned(), std::env::var(name).ok()?)));
    let request = Request::new(called_as, variables.collect(), conf);
    match messenger::ask(&request) {
        Ok(answered) => answered,
        Err(unanswered) => {
            let (net, broken) = NetConf::parse_for(call.verb, &request.config, called_as)?;
            direct::run(&call, &net, broken, &unanswered)
        }
    }
}

fn stdin() -> Result<Vec<u8>, CniError> {
    let mut bytes = Vec::new();
    let limit = u64::try_from(READ_STDIN_LIMIT).unwrap_or(u64::MAX) + 1;
    match std::io::stdin().lock().take(limit).read_to_end(&mut bytes) {
        Ok(_) => Ok(bytes),
        Err(e) => Err(CniError::new(code::IO, "the network configuration on stdin could not be read", e.to_string())),
    }
}
