//! x
use kiln_agent_proto::*;
use tonic::transport::*;
fn env(n: &str) -> String { std::env::var(n).unwrap_or_default() }
#[tokio::main]
async fn main() {
    let pki = env("PKI"); let who = std::env::var("WHO").unwrap_or("client".into());
    let r = |f: String| std::fs::read(format!("{pki}/{f}")).unwrap();
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(r("ca.crt".into()))).identity(Identity::from_pem(r(format!("{who}.crt")), r(format!("{who}.key")))).domain_name("builder-0");
    let ch = Endpoint::from_shared(format!("https://{}", env("ADDR"))).unwrap().tls_config(tls).unwrap().connect().await;
    let ch = match ch { Ok(c) => c, Err(e) => { println!("connect: {e:?}"); return } };
    let mut c = agent_client::AgentClient::new(ch);
    let args: Vec<String> = std::env::args().collect();
    let id = args[2].clone();
    match args[1].as_str() {
        "describe" => println!("{:?}", c.describe(DescribeRequest{}).await),
        "cancel" => println!("{:?}", c.cancel(CancelRequest{job_id:id}).await),
        "forget" => println!("{:?}", c.forget(ForgetRequest{job_id:id}).await),
        "drain" => println!("{:?}", c.drain(DrainRequest{}).await),
        "start"|"run" => {
            let kind = if env("URL").is_empty() {
                let files = env("FILES").split('\x1e').filter_map(|f| f.split_once('=')).map(|(a,b)|(a.to_owned(),b.replace("\\n","\n"))).collect();
                source::Kind::Inline(InlineSource{files})
            } else {
                source::Kind::Git(GitSource{url: env("URL"), commit: env("COMMIT"), r#ref: env("REF"), path: env("CTX"), submodules: !env("SUBMODULES").is_empty(), username: env("GUSER"), password: env("GPASS"), ca_pem: std::fs::read_to_string(env("GCA")).unwrap_or_default()})
            };
            let mut logins = vec![];
            if !env("RUSER").is_empty() { logins.push(Login{registry: env("REG"), username: env("RUSER"), password: env("RPASS")}); }
            let kv = |n: &str| env(n).split('\x1e').filter_map(|f| f.split_once('=')).map(|(a,b)|(a.to_owned(),b.to_owned())).collect::<std::collections::HashMap<String,String>>();
            let job = Job{id: id.clone(), run: "ns/run-1".into(), platform: std::env::var("PLATFORM").unwrap_or("linux/amd64".into()), attempt: 1, source: Some(Source{kind: Some(kind)}), dockerfile: env("DF"), target: env("TARGET"), build_args: kv("ARGS"), labels: kv("LABELS"), annotations: kv("ANNOTATIONS"), secrets: kv("SECRETS").into_iter().map(|(k,v)|(k,v.into_bytes())).collect(), logins, repository: env("REPO"), timeout_seconds: env("TIMEOUT").parse().unwrap_or(0), ..Default::default()};
            let t = std::time::Instant::now();
            println!("{:?}", c.start(StartRequest{job: Some(job)}).await.map(|r| r.into_inner()));
            if args[1] == "run" { watch(&mut c, id, 0).await; println!("took {:?}", t.elapsed()); }
        }
        "watch" => watch(&mut c, id, args.get(3).map_or(0, |s| s.parse().unwrap())).await,
        _ => {}
    }
}
async fn watch(c: &mut agent_client::AgentClient<Channel>, job_id: String, after: u64) {
    let mut s = match c.watch(WatchRequest{job_id, after}).await { Ok(s) => s.into_inner(), Err(e) => { println!("{e:?}"); return } };
    loop { match s.message().await { Ok(Some(e)) => match e.kind { 
        Some(event::Kind::Failure(f)) => println!("{} {f:#?}", e.sequence),
        Some(event::Kind::Step(s)) => println!("{} STEP {} {}", e.sequence, s.name, if !s.error.is_empty() {"ERR"} else if s.cached {"cached"} else if s.completed.is_some() {"done"} else {"start"}),
        k => println!("{} {k:?}", e.sequence) }, x => { println!("end {x:?}"); return } } }
}
