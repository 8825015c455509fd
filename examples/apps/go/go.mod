module example.com/links

go 1.19

require (
	github.com/go-chi/chi/v5 v5.2.0
	github.com/rs/xid v1.6.0
)
