import { z } from 'zod';
import { errorTable } from '../errors.ts';
import type { Route } from '../lib/route.ts';

/**
 * The OpenAPI 3.1 document, made from the routes: JSON Schema of zod as it is, named schemas
 * (z.globalRegistry) gathered under components. Requests are described as a caller writes them
 * (`io: 'input'`), answers as they are.
 */
type JsonObject = { [key: string]: unknown };

export function openApi(routes: readonly Route[], version: string): JsonObject {
  const schemas = new Map<string, unknown>();
  schemas.set('Problem', problemSchema);
  const paths: { [path: string]: JsonObject } = {};
  for (const route of routes) {
    const path = route.path.replace(/:([a-z]+)/gi, '{$1}');
    const methods = (paths[path] ??= {});
    methods[route.method.toLowerCase()] = operationOf(route, schemas);
  }
  return {
    openapi: '3.1.1',
    info: {
      title: 'Rouse',
      version,
      summary: 'Wakes a virtual machine from its deduplicated backup.',
    },
    paths,
    components: {
      schemas: Object.fromEntries([...schemas].sort(([a], [b]) => (a < b ? -1 : 1))),
    },
  };
}

function operationOf(route: Route, schemas: Map<string, unknown>): JsonObject {
  const parameters = [...pathParameters(route), ...queryParameters(route, schemas)];
  const problem = { $ref: '#/components/schemas/Problem' };
  return {
    operationId: operationId(route),
    summary: route.summary,
    tags: [route.tag],
    ...(parameters.length === 0 ? {} : { parameters }),
    ...(route.body === undefined
      ? {}
      : { requestBody: jsonContent(schemaOf(route.body, 'input', schemas)) }),
    responses: {
      [String(route.status ?? 200)]: { description: route.summary, ...contentOf(route, schemas) },
      default: {
        description: 'What was wrong, and what to do.',
        content: { 'application/problem+json': { schema: problem } },
      },
    },
  };
}

function contentOf(route: Route, schemas: Map<string, unknown>): JsonObject {
  if (route.bytes !== undefined) return { content: { [route.bytes.type]: {} } };
  if (route.answer === undefined) return {};
  const schema = schemaOf(route.answer, 'output', schemas);
  const json = route.handle === undefined ? {} : { 'application/json': { schema } };
  const stream = route.events === undefined ? {} : { 'text/event-stream': { schema } };
  return { content: { ...json, ...stream } };
}

function jsonContent(schema: unknown): JsonObject {
  return { content: { 'application/json': { schema } } };
}

/** `POST /v1/recoveries/:recovery/seal` -> `postRecoveriesSeal`, `GET …/:recovery` -> `getRecovery`. */
function operationId(route: Route): string {
  const parts = route.path.split('/').slice(2);
  const last = parts.at(-1);
  const words = last?.startsWith(':')
    ? [...parts.slice(0, -2), last.slice(1)]
    : parts.filter((part) => !part.startsWith(':'));
  const name = words
    .flatMap((word) => word.split(/[^a-z0-9]+/i))
    .map((word) => word.slice(0, 1).toUpperCase() + word.slice(1))
    .join('');
  return `${route.method.toLowerCase()}${name}`;
}

function pathParameters(route: Route): JsonObject[] {
  return (route.params ?? []).map((name) => ({
    name,
    in: 'path',
    required: true,
    description: 'An id or a name.',
    schema: { type: 'string' },
  }));
}

function queryParameters(route: Route, schemas: Map<string, unknown>): JsonObject[] {
  if (route.query === undefined) return [];
  const { properties = {} } = schemaOf(route.query, 'input', schemas) as {
    properties?: Record<string, { description?: string }>;
  };
  return Object.entries(properties).map(([name, { description, ...schema }]) => ({
    name,
    in: 'query',
    ...(description === undefined ? {} : { description }),
    schema,
  }));
}

function schemaOf(schema: z.ZodType, io: 'input' | 'output', schemas: Map<string, unknown>) {
  const made = z.toJSONSchema(schema, { io, unrepresentable: 'any' }) as JsonObject;
  const { $defs, $schema: _, ...rest } = pointToComponents(made) as JsonObject;
  for (const [name, definition] of Object.entries($defs ?? {})) schemas.set(name, definition);
  // A named schema at the top is described in place: it becomes a component as well.
  const { id, ...body } = rest;
  if (typeof id !== 'string') return rest;
  schemas.set(id, body);
  return { $ref: `#/components/schemas/${id}` };
}

function pointToComponents(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(pointToComponents);
  if (typeof value !== 'object' || value === null) return value;
  return Object.fromEntries(
    Object.entries(value).map(([key, inner]) =>
      key === '$ref' && typeof inner === 'string'
        ? [key, inner.replace('#/$defs/', '#/components/schemas/')]
        : [key, pointToComponents(inner)],
    ),
  );
}

const problemSchema = {
  type: 'object',
  required: ['type', 'code', 'title', 'status', 'advice'],
  properties: {
    type: { type: 'string' },
    code: { type: 'string', enum: Object.keys(errorTable) },
    title: { type: 'string', description: 'What was wrong, and where.' },
    status: { type: 'integer' },
    advice: { type: 'string', description: 'What to do about it.' },
    details: { type: 'object' },
  },
};
