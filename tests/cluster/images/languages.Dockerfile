# Stands in for the official images of languages and of Debian itself, out of Debian's packages: same names, paths,
# environment, users and commands, as far as Dockerfiles of their communities rely on them. A stage an image.

FROM scratch AS debian
ARG TARGETARCH
ADD $TARGETARCH.tar /
# Authorities that this machine trusts beside the public ones: the package ca-certificates takes them up.
COPY certificates/ /usr/local/share/ca-certificates/
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
CMD ["bash"]

# The lists of packages stay in the cache mounts, for the stages that follow: one for each architecture, for apt removes
# the lists of others. TARGETARCH is the first stage's.
FROM debian AS packages
RUN --mount=type=cache,target=/var/lib/apt/lists,id=lists-$TARGETARCH,sharing=locked \
    --mount=type=cache,target=/var/cache/apt,sharing=locked \
    apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends ca-certificates

FROM packages AS golang
RUN --mount=type=cache,target=/var/lib/apt/lists,id=lists-$TARGETARCH,sharing=locked \
    --mount=type=cache,target=/var/cache/apt,sharing=locked \
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends g++ gcc git golang-1.19-go libc6-dev make pkg-config \
 && ln -s /usr/lib/go-1.19 /usr/local/go \
 && mkdir -p /go/src /go/bin \
 && chmod -R 1777 /go
ENV GOLANG_VERSION=1.19.8
ENV GOPATH=/go
ENV PATH=/go/bin:/usr/local/go/bin:$PATH
WORKDIR /go

FROM packages AS eclipse-temurin-jre
# Java's packages want a directory for manual pages.
RUN --mount=type=cache,target=/var/lib/apt/lists,id=lists-$TARGETARCH,sharing=locked \
    --mount=type=cache,target=/var/cache/apt,sharing=locked \
    mkdir -p /usr/share/man/man1 /opt/java \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends openjdk-17-jre-headless \
 && ln -s /usr/lib/jvm/java-17-openjdk-* /opt/java/openjdk
ENV JAVA_HOME=/opt/java/openjdk
ENV PATH=/opt/java/openjdk/bin:$PATH
ENV LANG=C.UTF-8

FROM eclipse-temurin-jre AS eclipse-temurin
RUN --mount=type=cache,target=/var/lib/apt/lists,id=lists-$TARGETARCH,sharing=locked \
    --mount=type=cache,target=/var/cache/apt,sharing=locked \
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends openjdk-17-jdk-headless
CMD ["jshell"]

FROM eclipse-temurin AS maven
RUN --mount=type=cache,target=/var/lib/apt/lists,id=lists-$TARGETARCH,sharing=locked \
    --mount=type=cache,target=/var/cache/apt,sharing=locked \
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends git maven
ENV MAVEN_HOME=/usr/share/maven
ENV MAVEN_CONFIG=/root/.m2
CMD ["mvn"]

FROM packages AS node
RUN --mount=type=cache,target=/var/lib/apt/lists,id=lists-$TARGETARCH,sharing=locked \
    --mount=type=cache,target=/var/cache/apt,sharing=locked \
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends nodejs npm \
 && ln -s /usr/bin/node /usr/bin/npm /usr/bin/npx /usr/local/bin/ \
 && groupadd --gid 1000 node \
 && useradd --uid 1000 --gid node --shell /bin/bash --create-home node
ENV NODE_VERSION=18.20.4
CMD ["node"]

FROM packages AS nginx
RUN --mount=type=cache,target=/var/lib/apt/lists,id=lists-$TARGETARCH,sharing=locked \
    --mount=type=cache,target=/var/cache/apt,sharing=locked \
    groupadd --system --gid 101 nginx \
 && useradd --system --uid 101 --gid nginx --no-create-home --home-dir /nonexistent --shell /bin/false nginx \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends nginx-light \
 && rm -rf /etc/nginx/sites-* /var/www/html \
 && ln -sf /dev/stdout /var/log/nginx/access.log \
 && ln -sf /dev/stderr /var/log/nginx/error.log \
 && mkdir -p /var/cache/nginx \
 && sed -i -e 's/^user .*/user nginx;/' -e '/sites-enabled/d' /etc/nginx/nginx.conf
COPY <<END /etc/nginx/conf.d/default.conf
server {
    listen 80;
    server_name localhost;
    root /usr/share/nginx/html;
    index index.html index.htm;
}
END
ENV NGINX_VERSION=1.22.1
EXPOSE 80
STOPSIGNAL SIGQUIT
CMD ["nginx", "-g", "daemon off;"]

FROM packages AS python
# pip may install, and does it to site-packages, as everywhere but in Debian.
RUN --mount=type=cache,target=/var/lib/apt/lists,id=lists-$TARGETARCH,sharing=locked \
    --mount=type=cache,target=/var/cache/apt,sharing=locked \
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3 python3-pip python3-venv \
 && ln -s /usr/bin/python3 /usr/local/bin/python \
 && ln -s /usr/bin/python3 /usr/bin/pip3 /usr/local/bin/ \
 && ln -s /usr/bin/pip3 /usr/local/bin/pip \
 && rm -rf /usr/lib/python3*/EXTERNALLY-MANAGED /usr/local/lib/python3.11/dist-packages \
 && mkdir -p /usr/local/lib/python3.11/site-packages \
 && ln -s site-packages /usr/local/lib/python3.11/dist-packages
ENV LANG=C.UTF-8
ENV PYTHON_VERSION=3.11.2
CMD ["python3"]

FROM packages AS rust
# The newest that Debian has for this release: what its browsers are compiled with.
RUN --mount=type=cache,target=/var/lib/apt/lists,id=lists-$TARGETARCH,sharing=locked \
    --mount=type=cache,target=/var/cache/apt,sharing=locked \
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends cargo-web gcc git libc6-dev pkg-config rustc-web \
 && mkdir -p /usr/local/cargo/bin \
 && ln -s /usr/bin/cargo /usr/bin/rustc /usr/local/cargo/bin/ \
 && chmod -R a+w /usr/local/cargo
ENV CARGO_HOME=/usr/local/cargo
ENV PATH=/usr/local/cargo/bin:$PATH

FROM packages AS gcc
RUN --mount=type=cache,target=/var/lib/apt/lists,id=lists-$TARGETARCH,sharing=locked \
    --mount=type=cache,target=/var/cache/apt,sharing=locked \
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends g++ gcc git libc6-dev make \
 && ln -s /usr/bin/gcc /usr/bin/g++ /usr/local/bin/
