# Stands in for docker.io/moby/buildkit:VERSION-rootless: same paths, user, environment and entrypoint.
FROM scratch
ADD root.tar /
COPY bin/ /usr/bin/
RUN groupadd --gid 1000 user && useradd --uid 1000 --gid 1000 --home-dir /home/user --shell /bin/sh user \
 && mkdir -p /run/user/1000 /home/user/.local/tmp /home/user/.local/share/buildkit \
 && chown -R user:user /run/user/1000 /home/user \
 && echo user:100000:65536 | tee /etc/subuid > /etc/subgid
USER 1000:1000
ENV HOME=/home/user
ENV USER=user
ENV XDG_RUNTIME_DIR=/run/user/1000
ENV TMPDIR=/home/user/.local/tmp
ENV BUILDKIT_HOST=unix:///run/user/1000/buildkit/buildkitd.sock
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
VOLUME /home/user/.local/share/buildkit
ENTRYPOINT ["rootlesskit", "buildkitd"]
