# shellcheck shell=bash
# What a cluster's users bring along: a registry, a Git server and a web server, all over TLS from a private CA, Git over
# ssh; and the way out to package registries. Sourced by up.

start_registry() {
	mkdir -p "$STATE/registry"
	cat >"$CONF/registry.yaml" <<-END
		version: 0.1
		log: {level: info, accesslog: {disabled: false}}
		storage:
		  filesystem: {rootdirectory: $STATE/registry}
		  delete: {enabled: true}
		auth:
		  htpasswd: {realm: kiln, path: $CONF/registry.htpasswd}
		http:
		  addr: $REGISTRY
		  secret: $(openssl rand -hex 16)
		  tls: {certificate: $PKI/web.crt, key: $PKI/web.key}
	END
	start registry docker-registry serve "$CONF/registry.yaml"
	wait_for 10 registry registry_answers
}

registry_answers() {
	curl -fsS -m 2 -o /dev/null --cacert "$PKI/private-ca.crt" -u "kiln:$(<"$PKI/registry.password")" "https://$REGISTRY/v2/"
}

# A bare repository put into $STATE/git/NAME.git is served at $GIT_URL/NAME.git, one in private/ for a password only, and
# with the objects of Git LFS that it holds. A file put into $STATE/web is served at $WEB_URL, likewise.
start_git() {
	local etc=$CONF/nginx web=${WEB_URL#https://}
	mkdir -p "$etc" "$STATE/git/private" "$STATE/web/private"
	cat >"$etc/lfs.conf" <<-END
		proxy_pass http://unix:$STATE/lfs.sock;
		proxy_set_header Authorization \$http_authorization;
	END
	cat >"$etc/git.conf" <<-END
		fastcgi_pass unix:$STATE/fcgiwrap.sock;
		fastcgi_param SCRIPT_FILENAME $(git --exec-path)/git-http-backend;
		fastcgi_param GIT_PROJECT_ROOT $STATE/git;
		fastcgi_param GIT_HTTP_EXPORT_ALL 1;
		fastcgi_param GIT_PROTOCOL \$http_git_protocol;
		fastcgi_param HTTP_CONTENT_ENCODING \$http_content_encoding;
		# Whoever put the repository there.
		fastcgi_param GIT_CONFIG_COUNT 1;
		fastcgi_param GIT_CONFIG_KEY_0 safe.directory;
		fastcgi_param GIT_CONFIG_VALUE_0 *;
		fastcgi_param PATH_INFO \$uri;
		fastcgi_param QUERY_STRING \$query_string;
		fastcgi_param REQUEST_METHOD \$request_method;
		fastcgi_param CONTENT_TYPE \$content_type;
		fastcgi_param CONTENT_LENGTH \$content_length;
		fastcgi_param REMOTE_USER \$remote_user;
		fastcgi_param REMOTE_ADDR \$remote_addr;
	END
	cat >"$etc/nginx.conf" <<-END
		daemon off;
		user root;
		worker_processes 1;
		pid $STATE/nginx.pid;
		error_log $LOGS/nginx-error.log;
		events { worker_connections 256; }
		http {
		  access_log $LOGS/nginx-access.log;
		  client_max_body_size 0;
		  client_body_temp_path $STATE/nginx/body;
		  fastcgi_temp_path $STATE/nginx/fastcgi;
		  proxy_temp_path $STATE/nginx/proxy;
		  scgi_temp_path $STATE/nginx/scgi;
		  uwsgi_temp_path $STATE/nginx/uwsgi;
		  server {
		    listen ${GIT_URL#https://} ssl;
		    ssl_certificate $PKI/web.crt;
		    ssl_certificate_key $PKI/web.key;
		    location / {
		      include $etc/git.conf;
		      location ~ \.git/(info/)?lfs/ { include $etc/lfs.conf; }
		    }
		    location /private/ {
		      auth_basic kiln;
		      auth_basic_user_file $CONF/git.htpasswd;
		      include $etc/git.conf;
		      location ~ \.git/(info/)?lfs/ { include $etc/lfs.conf; }
		    }
		  }
		  server {
		    listen $web ssl;
		    ssl_certificate $PKI/web.crt;
		    ssl_certificate_key $PKI/web.key;
		    root $STATE/web;
		    types {}
		    location / { }
		    location /private/ {
		      auth_basic kiln;
		      auth_basic_user_file $CONF/web.htpasswd;
		    }
		    # The rest of the path is where it leads: on this host, on one of another name, without TLS, to itself.
		    location /moved/ { rewrite ^/moved(/.*) \$1 redirect; }
		    location /elsewhere/ { rewrite ^/elsewhere(/.*) https://git.kiln.test:${web#*:}\$1 redirect; }
		    location /plain/ { rewrite ^/plain(/.*) http://$web\$1 redirect; }
		    location /round/ { rewrite ^ $WEB_URL\$uri redirect; }
		  }
		}
	END
	mkdir -p "$STATE/nginx"
	rm -f "$STATE/fcgiwrap.sock"
	start fcgiwrap fcgiwrap -f -c 8 -s "unix:$STATE/fcgiwrap.sock"
	start lfs "$BIN/servers" lfs --socket "$STATE/lfs.sock" --root "$STATE/git" --url "$GIT_URL"
	start git-ssh "$BIN/servers" ssh --listen "$GIT_SSH" --root "$STATE/git" --host-key "$PKI/ssh-host" \
		--authorized-key "$PKI/ssh-client.pub" --lfs "$GIT_URL" --lfs-authorization "$CONF/git.credential"
	start nginx nginx -e "$LOGS/nginx-error.log" -c "$etc/nginx.conf"
	wait_for 10 'Git server' git_answers
}

git_answers() {
	[[ $(curl -sS -m 2 -o /dev/null -w '%{http_code}' --cacert "$PKI/private-ca.crt" "$GIT_URL/private/") == 401 ]]
}

# The way out: package registries, and nothing else.
start_packages() {
	local hosts
	hosts=$(IFS=, && printf '%s' "${PACKAGE_HOSTS[*]}")
	start packages "$BIN/servers" packages --listen "$PACKAGES_IP" --hosts "$hosts"
}

start_services() {
	start_registry
	start_other_registries
	start_git
	start_packages
}
