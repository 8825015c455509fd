// Listens, and ends in good order when Kubernetes asks for it.
import { app } from './app.js';

const port = Number(process.env.PORT ?? 8080);
const server = app.listen(port, () => console.log(`listening on ${port}`));

for (const signal of ['SIGINT', 'SIGTERM']) {
  process.on(signal, () => server.close(() => process.exit(0)));
}
