//! One order, from the names to the certificate.
//!
//! ```text
//! order -> show each proof -> tell the ACME server -> it looks --ready--> request -> certificate
//!                                                          \--invalid--> its words, and a remedy
//! whatever happened: withdraw the proofs
//! ```

use instant_acme::{
    Account, AuthorizationStatus, ChallengeStatus, ChallengeType, Identifier, NewOrder, Order, OrderStatus, RetryPolicy,
};

use super::{
    AcmeError,
    proof::{Proof, Prover},
    subject::Subject,
};
use crate::limits::{ACME_PATIENCE, ACME_POLL_FIRST};

/// The protocol knows no way to be told. The pause doubles.
const POLLING: RetryPolicy = RetryPolicy::new().initial_delay(ACME_POLL_FIRST).timeout(ACME_PATIENCE);

/// Gets a certificate; key and chain as PEM.
pub(super) async fn run(account: &Account, prover: &Prover, subject: &Subject) -> Result<String, AcmeError> {
    let identifiers: Vec<_> = subject.names.iter().map(|name| Identifier::Dns(name.clone())).collect();
    let mut order = account.new_order(&NewOrder::new(&identifiers)).await.map_err(talk("the order was refused"))?;
    let mut shown = Vec::new();
    let proved = prove(&mut order, prover, &mut shown).await;
    for proof in shown {
        prover.withdraw(proof).await;
    }
    proved?;
    let key = order.finalize().await.map_err(talk("the request for a certificate was refused"))?;
    let chain = order.poll_certificate(&POLLING).await.map_err(talk("no certificate came"))?;
    Ok(key + &chain)
}

async fn prove(order: &mut Order, prover: &Prover, shown: &mut Vec<Proof>) -> Result<(), AcmeError> {
    let (kind, kind_name) = prover.kind();
    // All of them first: a resolver that has seen one record of a name may not look again soon.
    let mut authorizations = order.authorizations();
    while let Some(next) = authorizations.next().await {
        let mut authorization = next.map_err(talk("cannot learn what to prove"))?;
        if authorization.status == AuthorizationStatus::Valid {
            continue;
        }
        let Identifier::Dns(name) = authorization.identifier().identifier.clone() else { continue };
        let challenge = authorization.challenge(kind.clone());
        let challenge = challenge.ok_or(AcmeError::NoChallenge { name: name.clone(), kind: kind_name })?;
        shown.push(prover.show(&name, &challenge.key_authorization()).await?);
    }
    if let Err(error) = ask(order, kind).await {
        // A server that has looked already says so in its answer.
        return Err(refusal(order, prover).await.unwrap_or(error));
    }
    let seen = order.poll_ready(&POLLING).await;
    if let Ok(OrderStatus::Ready) = seen {
        return Ok(());
    }
    Err(match (refusal(order, prover).await, seen) {
        (Some(refused), _) => refused,
        (None, Err(source)) => AcmeError::Talk { step: "the proof was not looked at", source },
        (None, Ok(status)) => AcmeError::Unusable(format!("the order is {status:?}")),
    })
}

/// Asks for a look at each proof.
async fn ask(order: &mut Order, kind: ChallengeType) -> Result<(), AcmeError> {
    let mut authorizations = order.authorizations();
    while let Some(next) = authorizations.next().await {
        let mut authorization = next.map_err(talk("cannot learn what to prove"))?;
        if authorization.status == AuthorizationStatus::Valid {
            continue;
        }
        if let Some(mut challenge) = authorization.challenge(kind.clone()) {
            challenge.set_ready().await.map_err(talk("cannot ask for a look at the proof"))?;
        }
    }
    Ok(())
}

/// What the ACME server says of the first proof that it did not accept.
async fn refusal(order: &mut Order, prover: &Prover) -> Option<AcmeError> {
    let mut authorizations = order.authorizations();
    while let Some(next) = authorizations.next().await {
        let mut authorization = next.ok()?;
        let state = authorization.refresh().await.ok()?;
        let name = state.identifier().to_string();
        let challenge = state.challenges.iter().find(|challenge| challenge.status == ChallengeStatus::Invalid);
        if let Some(problem) = challenge.and_then(|challenge| challenge.error.as_ref()) {
            let why = problem.detail.clone().unwrap_or_else(|| problem.to_string());
            return Some(AcmeError::Refused { name, why, remedy: prover.remedy() });
        }
    }
    None
}

fn talk(step: &'static str) -> impl FnOnce(instant_acme::Error) -> AcmeError {
    move |source| AcmeError::Talk { step, source }
}
