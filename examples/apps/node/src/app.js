// Markdown in, HTML out: POST text/markdown to /render.
import express from 'express';
import { marked } from 'marked';

export const app = express();
app.disable('x-powered-by');
app.use(express.text({ type: ['text/markdown', 'text/plain'], limit: '256kb' }));

app.get('/', (request, response) => {
  response.type('text').send('markdown: POST text/markdown to /render\n');
});

app.get('/healthz', (request, response) => {
  response.sendStatus(204);
});

app.post('/render', (request, response) => {
  if (typeof request.body !== 'string') {
    response.status(415).type('text').send('the body is to be text/markdown\n');
    return;
  }
  response.type('html').send(marked.parse(request.body));
});
