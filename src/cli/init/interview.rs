//! The questions, in a terminal. What was given by flags is not asked.

use anyhow::Context as _;
use dialoguer::theme::ColorfulTheme;
use dialoguer::{Confirm, Input, Select};

use super::answers::{
    Answers, Approve, CLIENT_REASON, Choice, Given, Machines, PILOT_REASON, ServerWindow, TIME_ZONE_REASON,
    WorkstationWindow, checked_client, checked_time_zone, local_time_zone,
};
use crate::cli::screen::{FAINT, TITLE, wrapped};

/// Asks for what is missing.
pub(super) fn ask(mut given: Given) -> anyhow::Result<Answers> {
    let theme = ColorfulTheme::default();
    anstream::eprintln!("{TITLE}The first set-up of a client.{TITLE:#} Everything can be changed later: it is YAML.");
    if given.client.is_none() {
        reason(CLIENT_REASON);
        let input = Input::with_theme(&theme)
            .with_prompt("What is the client called?")
            .validate_with(|text: &String| checked_client(text).map_err(|error| error.to_string()));
        given.client = Some(input.interact_text().context("no answer")?);
    }
    let machines = chosen(given.machines)?;
    given.machines = Some(machines);
    if given.time_zone.is_none() {
        reason(TIME_ZONE_REASON);
        let input = Input::with_theme(&theme)
            .with_prompt("In which time zone are the windows?")
            .default(local_time_zone())
            .validate_with(|text: &String| checked_time_zone(text).map_err(|error| error.to_string()));
        given.time_zone = Some(input.interact_text().context("no answer")?);
    }
    let approve = chosen(given.approve)?;
    given.approve = Some(approve);
    if machines != Machines::Workstations {
        given.server_window = Some(chosen::<ServerWindow>(given.server_window)?);
    }
    if machines != Machines::Servers {
        given.workstation_window = Some(chosen::<WorkstationWindow>(given.workstation_window)?);
    }
    if given.pilot.is_none() && approve != Approve::ByHand {
        reason(PILOT_REASON);
        let confirm = Confirm::with_theme(&theme)
            .with_prompt("Do some machines get updates days before the others?")
            .default(true);
        given.pilot = Some(confirm.interact().context("no answer")?);
    }
    given.restart = Some(chosen(given.restart)?);
    given.start = Some(chosen(given.start)?);
    given.recommended()
}

fn chosen<C: Choice>(given: Option<C>) -> anyhow::Result<C> {
    if let Some(given) = given {
        return Ok(given);
    }
    reason(C::REASON);
    let all = C::value_variants();
    let words: Vec<&str> = all.iter().map(|choice| choice.words()).collect();
    let index = Select::with_theme(&ColorfulTheme::default())
        .with_prompt(C::QUESTION)
        .items(&words)
        .default(0)
        .interact()
        .context("no answer")?;
    all.get(index).copied().context("no answer")
}

fn reason(text: &str) {
    anstream::eprintln!("\n{FAINT}{}{FAINT:#}", wrapped(text, 0));
}
