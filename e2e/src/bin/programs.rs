//! Builds the programs that a real cluster is made of, if this user never did.

fn main() -> anyhow::Result<()> {
    if let Some(tools) = e2e::tools::Tools::or_skip()? {
        println!("{}", tools.path("").display());
    }
    Ok(())
}
