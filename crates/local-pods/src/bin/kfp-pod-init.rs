//! The supervisor and the Python front of containers as a small program of its own: it starts
//! faster than the one that contains everything.

fn main() {
    let code = kfp_local_pods::pod_init_main(std::env::args_os()).unwrap_or_else(|| {
        eprintln!("kfp-pod-init is started by kfp-local");
        2
    });
    std::process::exit(code);
}
