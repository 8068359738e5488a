//! Configuration of S3 clients, ready to paste.

use super::args::Client;

/// What a client needs to know.
pub struct Access<'a> {
    pub host: &'a str,
    pub region: &'a str,
    pub access_key: &'a str,
    pub secret_key: &'a str,
}

/// Lines to paste for `client`.
pub fn paste(client: Client, a: &Access<'_>) -> String {
    let Access { host, region, access_key, secret_key } = a;
    match client {
        Client::Aws => format!(
            "export AWS_ACCESS_KEY_ID={access_key}\nexport AWS_SECRET_ACCESS_KEY={secret_key}\n\
             export AWS_DEFAULT_REGION={region}\nexport AWS_ENDPOINT_URL=http://{host}\n\
             aws s3 mb s3://photos && aws s3 ls\n"
        ),
        Client::Rclone => format!(
            "# ~/.config/rclone/rclone.conf\n[cobalt]\ntype = s3\nprovider = Other\n\
             endpoint = http://{host}\nregion = {region}\naccess_key_id = {access_key}\n\
             secret_access_key = {secret_key}\nforce_path_style = true\n"
        ),
        Client::S3cmd => format!(
            "# ~/.s3cfg\n[default]\naccess_key = {access_key}\nsecret_key = {secret_key}\n\
             host_base = {host}\nhost_bucket = {host}\nbucket_location = {region}\nuse_https = False\n\
             signature_v2 = False\n"
        ),
        Client::Boto3 => format!(
            "import boto3\ns3 = boto3.client(\n    \"s3\",\n    endpoint_url=\"http://{host}\",\n    \
             region_name=\"{region}\",\n    aws_access_key_id=\"{access_key}\",\n    \
             aws_secret_access_key=\"{secret_key}\",\n)\n"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::{Access, Client, paste};

    #[test]
    fn every_client_is_told_endpoint_and_both_keys() {
        let access = Access {
            host: "127.0.0.1:9000",
            region: "us-east-1",
            access_key: "AKEXAMPLE",
            secret_key: "shh",
        };
        for client in [Client::Aws, Client::Rclone, Client::S3cmd, Client::Boto3] {
            let text = paste(client, &access);
            for part in ["127.0.0.1:9000", "AKEXAMPLE", "shh", "us-east-1"] {
                assert!(text.contains(part), "{client:?} lacks {part}");
            }
            assert!(!text.contains("  \\"), "{text}");
        }
    }
}
