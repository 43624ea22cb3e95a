import type { z } from 'zod';
import { type Problem, RouseError } from '../errors.ts';
import { joinOr, nearest, printable } from '../lib/text.ts';

/**
 * Errors as people read them: what a schema found wrong, by the field's name and the value that
 * was given; and any thrown value as problem+json (RFC 9457) without its insides.
 */
interface WrongField {
  /** `disks.0.path`; empty: the request itself. */
  readonly field: string;
  readonly message: string;
  readonly nearest?: readonly string[];
}

/** `where`: "request", "query". Answers what the schema made of `value`. */
export function check<T extends z.ZodType>(schema: T, value: unknown, where: string): z.output<T> {
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  const known = fieldNames(schema);
  const fields = result.error.issues.flatMap((issue) => wrongFields(issue, value, where, known));
  const shown = fields.slice(0, 4).map((field) => field.message);
  const more = fields.length > shown.length ? `; and ${fields.length - shown.length} more` : '';
  const meant = fields.find((field) => (field.nearest ?? []).length > 0)?.nearest;
  throw new RouseError('bad-request', `${shown.join('; ')}${more}`, {
    ...(meant === undefined ? {} : { advice: `Did you mean ${joinOr(meant)}?` }),
    details: { fields },
  });
}

function wrongFields(
  issue: z.core.$ZodIssue,
  value: unknown,
  where: string,
  known: readonly string[],
): readonly WrongField[] {
  const field = issue.path.map(String).join('.');
  if (issue.code === 'unrecognized_keys') {
    return issue.keys.map((key) => ({
      field: [field, key].filter((part) => part !== '').join('.'),
      message: `the ${where} has no field "${shorten(key)}"`,
      nearest: field === '' ? nearest(key, known, 1) : [],
    }));
  }
  const found = valueAt(value, issue.path);
  const given = /password/iu.test(field) && found !== undefined ? {} : found;
  if (field === '') {
    return [{ field, message: `the ${where} must be a JSON object with the fields it needs` }];
  }
  if (given === undefined) {
    const said = issue.message.startsWith('is missing') ? issue.message : 'is missing';
    return [{ field, message: `${field} ${said}` }];
  }
  const near =
    issue.code === 'invalid_value' && typeof given === 'string'
      ? nearest(given, issue.values.map(String), 1)
      : [];
  return [{ field, message: `${field} ${describe(given)}${sentence(issue)}`, nearest: near }];
}

/** Our own messages begin with a verb; those of the library say what they expect. */
function sentence(issue: z.core.$ZodIssue): string {
  if (!/^(Invalid|Expected|Too|Unrecognized)/.test(issue.message)) return issue.message;
  if (issue.code === 'invalid_type') return `must be ${article(issue.expected)}`;
  return `is wrong (${issue.message})`;
}

function article(type: string): string {
  return /^[aeiou]/.test(type) ? `an ${type}` : `a ${type}`;
}

function describe(value: unknown): string {
  if (typeof value === 'string') return `"${shorten(value)}" `;
  if (typeof value === 'number' || typeof value === 'boolean') return `${value} `;
  return '';
}

function shorten(text: string): string {
  return printable(text.length > 60 ? `${text.slice(0, 59)}…` : text);
}

function valueAt(value: unknown, path: readonly PropertyKey[]): unknown {
  let at: unknown = value;
  for (const key of path) {
    if (typeof at !== 'object' || at === null || !Object.hasOwn(at, key)) return undefined;
    at = (at as Record<PropertyKey, unknown>)[key];
  }
  return at;
}

function fieldNames(schema: z.ZodType): readonly string[] {
  let inner: unknown = schema;
  for (let depth = 0; depth < 8 && typeof inner === 'object' && inner !== null; depth += 1) {
    if ('shape' in inner && typeof inner.shape === 'object' && inner.shape !== null) {
      return Object.keys(inner.shape);
    }
    inner = 'in' in inner ? inner.in : undefined;
  }
  return [];
}

/** What the log gets beside the answer; undefined when the error is an expected one. */
export interface Incident {
  readonly id: string;
  readonly error: unknown;
}

/**
 * The answer for a thrown value. What is not a RouseError, and what is `internal`, is an incident:
 * the caller gets its id, the log gets the rest.
 */
export function problemOf(
  error: unknown,
  newId: () => string,
): { problem: Problem & { readonly type: string }; incident: Incident | undefined } {
  const known = fastifyProblem(error) ?? error;
  if (known instanceof RouseError && known.code !== 'internal') {
    return { problem: withType(known.toProblem()), incident: undefined };
  }
  const id = newId();
  const title =
    known instanceof RouseError ? known.message : 'something went wrong inside of the server';
  const problem = new RouseError('internal', title, {
    advice: `Report this, with the log of the server around ${id}.`,
    details: { incident: id },
  }).toProblem();
  return { problem: withType(problem), incident: { id, error } };
}

/** RFC 9457 section 3.1.1: `type` tells what `title` is about; ours are stable codes. */
function withType(problem: Problem): Problem & { readonly type: string } {
  return { type: `urn:rouse:error:${problem.code}`, ...problem };
}

/** Requests that fastify itself refuses. */
function fastifyProblem(error: unknown): RouseError | undefined {
  if (!(error instanceof Error) || error instanceof RouseError || !('code' in error)) {
    return undefined;
  }
  switch (error.code) {
    case 'FST_ERR_CTP_INVALID_JSON_BODY':
    case 'FST_ERR_CTP_EMPTY_JSON_BODY':
    case 'FST_ERR_CTP_INVALID_CONTENT_LENGTH':
      return new RouseError('bad-request', 'the body of the request is not JSON');
    case 'FST_ERR_CTP_BODY_TOO_LARGE':
      return new RouseError('bad-request', 'the body of the request is too large');
    case 'FST_ERR_CTP_INVALID_MEDIA_TYPE':
      return new RouseError('bad-request', 'the body of the request must be JSON', {
        advice: 'Send it with Content-Type: application/json.',
      });
    default:
      return error instanceof SyntaxError
        ? new RouseError('bad-request', 'the body of the request is not JSON')
        : undefined;
  }
}
