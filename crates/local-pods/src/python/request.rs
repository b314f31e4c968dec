//! What a `python` or `pip` command line asks for; pure.

/// A command line, understood as far as environments are concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Request {
    /// Run the interpreter with these arguments.
    Run(Vec<String>),
    /// Install packages into an environment that can be shared.
    Install {
        /// Arguments after `pip install`, as they go to pip.
        args: Vec<String>,
        /// What identifies the result, whatever the order and the flags that do not matter.
        key: Vec<String>,
    },
    /// Change the environment in a way that depends on local files or cannot be told: never shared.
    Private(Vec<String>),
}

/// Options without influence on what gets installed.
const IGNORED: [&str; 17] = [
    "-q",
    "-qq",
    "-qqq",
    "--quiet",
    "-v",
    "-vv",
    "-vvv",
    "--verbose",
    "--no-warn-script-location",
    "--disable-pip-version-check",
    "--no-cache-dir",
    "--no-input",
    "--no-color",
    "--no-python-version-warning",
    "--no-warn-conflicts",
    "--break-system-packages",
    "--no-clean",
];
/// The same, with a value.
const IGNORED_WITH_VALUE: [&str; 9] = [
    "--progress-bar",
    "--root-user-action",
    "--timeout",
    "--default-timeout",
    "--retries",
    "--cache-dir",
    "--log",
    "--exists-action",
    "--resume-retries",
];
/// Options that matter and depend on nothing local.
const KEPT: [&str; 16] = [
    "--no-index",
    "--pre",
    "--no-deps",
    "--prefer-binary",
    "--use-pep517",
    "--no-use-pep517",
    "--no-build-isolation",
    "-U",
    "--upgrade",
    "--force-reinstall",
    "-I",
    "--ignore-installed",
    "--compile",
    "--no-compile",
    "--require-hashes",
    "--ignore-requires-python",
];
/// The same, with a value.
const KEPT_WITH_VALUE: [&str; 16] = [
    "-i",
    "--index-url",
    "--pypi-url",
    "--extra-index-url",
    "-f",
    "--find-links",
    "--trusted-host",
    "--no-binary",
    "--only-binary",
    "--upgrade-strategy",
    "--use-feature",
    "--use-deprecated",
    "--proxy",
    "--cert",
    "--client-cert",
    "--keyring-provider",
];
/// Subcommands of pip that change an environment in a way not worth sharing.
const CHANGING: [&str; 1] = ["uninstall"];

/// Understands a command: `program` is the base name it was called by.
pub(super) fn parse(program: &str, args: &[String]) -> Request {
    if program.starts_with("pip") {
        let run = || ["-m", "pip"].iter().map(ToString::to_string).chain(args.iter().cloned()).collect();
        return pip(args).unwrap_or_else(|| Request::Run(run()));
    }
    module_pip(args).and_then(pip).unwrap_or_else(|| Request::Run(args.to_vec()))
}

/// The arguments after `-m pip`, when that is what runs.
fn module_pip(args: &[String]) -> Option<&[String]> {
    let mut rest = args;
    while let Some((first, after)) = rest.split_first() {
        rest = match first.as_str() {
            "-m" => return (after.first()? == "pip").then(|| after.get(1..)).flatten(),
            "-mpip" => return Some(after),
            // Options of the interpreter that take the next word.
            "-W" | "-X" | "--check-hash-based-pycs" => after.get(1..)?,
            "-c" | "-" | "--" => return None,
            word if word.starts_with('-') => after,
            _ => return None,
        };
    }
    None
}

fn pip(args: &[String]) -> Option<Request> {
    let mut at = 0;
    loop {
        let word = args.get(at)?.as_str();
        if !word.starts_with('-') {
            break;
        }
        at += if takes_value(word) { 2 } else { 1 };
    }
    let (before, command) = args.split_at_checked(at)?;
    let (name, after) = command.split_first()?;
    if CHANGING.contains(&name.as_str()) {
        return Some(Request::Private(args.to_vec()));
    }
    if name != "install" {
        return None;
    }
    // Global options may stand before or after the subcommand; one order serves both.
    let all: Vec<String> = before.iter().chain(after).filter(|a| *a != "--user").cloned().collect();
    if all.iter().any(|a| a == "-h" || a == "--help") {
        return None;
    }
    let with_command = || std::iter::once("install".to_string()).chain(all.iter().cloned()).collect();
    Some(key(&all).map_or_else(|| Request::Private(with_command()), |key| Request::Install { args: all.clone(), key }))
}

fn takes_value(word: &str) -> bool {
    IGNORED_WITH_VALUE.contains(&word) || KEPT_WITH_VALUE.contains(&word)
}

fn key(args: &[String]) -> Option<Vec<String>> {
    let (mut options, mut packages) = (Vec::new(), Vec::new());
    let mut words = args.iter();
    while let Some(word) = words.next() {
        let (name, joined) = word.split_once('=').map_or((word.as_str(), None), |(n, v)| (n, Some(v)));
        if !word.starts_with('-') {
            packages.push(requirement(word)?);
        } else if IGNORED.contains(&word.as_str()) {
        } else if IGNORED_WITH_VALUE.contains(&name) {
            if joined.is_none() {
                words.next()?;
            }
        } else if KEPT.contains(&word.as_str()) {
            options.push(word.clone());
        } else if KEPT_WITH_VALUE.contains(&name) {
            let value = match joined {
                Some(value) => value.to_string(),
                None => words.next()?.clone(),
            };
            options.push(format!("{name}={value}"));
        } else {
            return None;
        }
    }
    if packages.is_empty() {
        return None;
    }
    packages.sort();
    packages.dedup();
    options.dedup();
    options.append(&mut packages);
    Some(options)
}

/// The normal form of a requirement, or nothing when it names local files.
fn requirement(word: &str) -> Option<String> {
    let word = word.trim();
    let remote = ["http://", "https://", "git+http", "git+ssh", "hg+http", "bzr+http", "svn+http"];
    let location = word.split_once(" @ ").map_or(word, |(_, at)| at.trim());
    if remote.iter().any(|r| location.starts_with(r)) {
        return Some(word.to_string());
    }
    let archive = [".whl", ".tar.gz", ".zip", ".tar.bz2", ".tgz"].iter().any(|e| word.ends_with(e));
    if archive || word.is_empty() || word.contains("://") || word.starts_with(['.', '/', '~']) {
        return None;
    }
    // A marker may contain anything; a path before it would contain a slash.
    let (name, marker) = word.split_once(';').unwrap_or((word, ""));
    if name.contains('/') || name.contains("file:") {
        return None;
    }
    let compact: String = name.chars().filter(|c| !c.is_whitespace()).collect();
    Some(if marker.trim().is_empty() { compact } else { format!("{compact};{}", marker.trim()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_string).collect()
    }

    fn key_of(text: &str) -> Vec<String> {
        match parse("python3", &words(text)) {
            Request::Install { key, .. } => key,
            other => panic!("not an install: {other:?}"),
        }
    }

    #[test]
    fn order_and_noise_do_not_change_the_key() {
        let a = key_of("-m pip install --quiet --no-warn-script-location pandas kfp==2.14.3 --no-deps");
        let b = key_of("-u -W ignore -m pip -q install kfp==2.14.3 --no-deps pandas --timeout 9 --user");
        assert_eq!(a, ["--no-deps", "kfp==2.14.3", "pandas"]);
        assert_eq!(a, b);
    }

    #[test]
    fn indexes_belong_to_the_key() {
        assert_eq!(
            key_of("-m pip install x --index-url https://a --extra-index-url=https://b"),
            ["--index-url=https://a", "--extra-index-url=https://b", "x"]
        );
        assert_ne!(key_of("-m pip install x -i https://a"), key_of("-m pip install x -i https://b"));
    }

    #[test]
    fn local_sources_are_private() {
        for text in [
            "install .",
            "install ./a",
            "install -r r.txt",
            "install -e src",
            "install a.whl",
            "install d/e",
            "install file:///x",
            "install x@file:///y",
            "install -t /tmp/x y",
            "uninstall -y x",
            "install --unknown x",
            "install -c c.txt x",
        ] {
            assert!(matches!(parse("pip", &words(text)), Request::Private(_)), "{text}");
        }
        assert!(matches!(parse("pip3", &words("install git+https://h/r@main")), Request::Install { .. }));
    }

    #[test]
    fn everything_else_runs() {
        for text in ["-c print(1)", "script.py -m pip install x", "-m kfp.dsl.executor_main", "-m pip list", "-m pip"] {
            assert_eq!(parse("python", &words(text)), Request::Run(words(text)), "{text}");
        }
        assert_eq!(parse("pip", &words("freeze")), Request::Run(words("-m pip freeze")));
        assert_eq!(parse("pip", &words("install --help")), Request::Run(words("-m pip install --help")));
    }
}
