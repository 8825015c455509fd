//! What the API server's answers mean for an object, in words that people read; pure.

use kiln_registry::http_client::FailureClass;

use crate::reason::Reason;
use crate::references::Fault;

/// What the API server said, without the shape that it has in this program.
#[must_use]
pub fn words(error: &kube::Error) -> String {
    match error {
        // Its own display repeats it as a structure.
        kube::Error::Api(status) if !status.message.is_empty() => status.message.clone(),
        kube::Error::Api(status) => format!("HTTP {}", status.code),
        error => {
            let mut words = error.to_string();
            let mut source = std::error::Error::source(error);
            while let Some(cause) = source {
                let text = cause.to_string();
                if !words.contains(&text) {
                    words = format!("{words}: {text}");
                }
                source = cause.source();
            }
            words
        }
    }
}

/// Why a run or a status could not be written.
#[must_use]
pub fn fault(error: &kube::Error) -> Fault {
    let (reason, message) = of_write(error);
    // Who raises a quota, changes a policy or grants a right changes nothing of the object: it is tried again.
    Fault { class: FailureClass::Infrastructure, ..Fault::user(reason, message) }
}

fn of_write(error: &kube::Error) -> (Reason, String) {
    let kube::Error::Api(status) = error else {
        let message =
            format!("the API server could not be asked to write the ImageBuild's status or a run: {}", words(error));
        return (Reason::ApiUnavailable, message);
    };
    let said = &status.message;
    // Behind the object's kind and name, which holds neither a quote nor white space.
    let denied = said.split_once("\" is forbidden: ").map_or(said.as_str(), |(_, denied)| denied);
    if let Some(quota) = denied.strip_prefix("exceeded quota: ") {
        return (
            Reason::NamespaceQuotaExceeded,
            format!(
                "a ResourceQuota of the namespace lets Kiln make no run ({quota}); delete runs that are not needed, lower spec.history, or have it raised"
            ),
        );
    }
    if denied.starts_with("ValidatingAdmissionPolicy '") || denied.starts_with("admission webhook \"") {
        return (
            Reason::AdmissionRefused,
            format!("a policy of the cluster does not let Kiln write a run or the status: {denied}"),
        );
    }
    if said.contains("too large") {
        return (
            Reason::ApiUnavailable,
            format!(
                "the API server cannot store a status or a run of it ({said}): put the files of source.inline into a Git repository"
            ),
        );
    }
    (Reason::ApiUnavailable, format!("the API server did not take its status or a run of it: {}", words(error)))
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    fn api(code: u16, reason: &str, message: &str) -> kube::Error {
        kube::Error::Api(Box::new(Status::failure(message, reason).with_code(code)))
    }

    #[test]
    fn what_keeps_a_run_from_being_made() {
        let run = "imagebuildruns.kiln.build \"app-1\" is forbidden: ";
        for (code, kind, message, reason, words) in [
            (
                403,
                "Forbidden",
                format!(
                    "{run}exceeded quota: few, requested: count/imagebuildruns.kiln.build=1, used: count/imagebuildruns.kiln.build=9, limited: count/imagebuildruns.kiln.build=9"
                ),
                Reason::NamespaceQuotaExceeded,
                "(few, requested: count/imagebuildruns.kiln.build=1,",
            ),
            (
                422,
                "Invalid",
                format!(
                    "{run}ValidatingAdmissionPolicy 'signed' with binding 'signed' denied request: exceeded quota: no"
                ),
                Reason::AdmissionRefused,
                "ValidatingAdmissionPolicy 'signed' with binding",
            ),
            (
                403,
                "Forbidden",
                "admission webhook \"policy.example\" denied the request: no".to_owned(),
                Reason::AdmissionRefused,
                "policy.example",
            ),
            (
                403,
                "Forbidden",
                format!("{run}User \"system:serviceaccount:kiln-system:kiln\" cannot create resource"),
                Reason::ApiUnavailable,
                "cannot create resource",
            ),
            (413, "RequestEntityTooLarge", "Request is too large".to_owned(), Reason::ApiUnavailable, "source.inline"),
            (500, "InternalError", String::new(), Reason::ApiUnavailable, "HTTP 500"),
        ] {
            let fault = fault(&api(code, kind, &message));
            assert_eq!(fault.reason, reason, "{message}");
            assert!(fault.message.contains(words), "{}", fault.message);
        }
    }

    /// Rust's own way to show a structure reaches nobody.
    #[test]
    fn no_structure_is_shown() {
        let io = || std::io::Error::new(std::io::ErrorKind::ConnectionReset, "connection reset by peer");
        for error in [
            api(403, "Forbidden", "no"),
            api(503, "", ""),
            kube::Error::Service(Box::new(io())),
            kube::Error::ReadEvents(io()),
            kube::Error::LinesCodecMaxLineLengthExceeded,
            kube::Error::SerdeError(serde_json::from_str::<u8>("x").unwrap_err()),
            kube::Error::BuildRequest(kube::core::request::Error::Validation("name".to_owned())),
        ] {
            let texts = [words(&error), fault(&error).message, crate::image_build::Error::Write(error).to_string()];
            for text in texts {
                assert!(!text.is_empty());
                for sign in ["Some(", "Status {", "Error(", "{ ", "Os {", "None"] {
                    assert!(!text.contains(sign), "{text}");
                }
            }
        }
    }
}
