/**
 * Every error a person or a program can get from Rouse, in one table: a stable code, an HTTP
 * status, an exit code of the command line, and what to do about it when the place that throws
 * says nothing better. `RouseError` carries what was wrong and where.
 */
export const errorTable = {
  'bad-request': { status: 400, exit: 2, advice: 'Correct the named value and try again.' },
  unauthorised: { status: 401, exit: 4, advice: 'Sign in, or use the socket of this server.' },
  forbidden: { status: 403, exit: 4, advice: 'Ask an administrator for the missing right.' },
  'not-found': { status: 404, exit: 3, advice: 'Check the name; list what exists.' },
  'already-exists': { status: 409, exit: 5, advice: 'Choose another name, or remove the old one.' },
  busy: { status: 409, exit: 5, advice: 'Wait until the running work ends, or cancel it.' },
  'wrong-state': { status: 409, exit: 5, advice: 'Look at its state first.' },
  cancelled: { status: 409, exit: 6, advice: 'Start it again when you want it.' },
  'corrupt-data': { status: 422, exit: 7, advice: 'Use another copy of this data.' },
  'unsupported-format': { status: 422, exit: 7, advice: 'Convert it with qemu-img first.' },
  'newer-format': { status: 422, exit: 7, advice: 'Update Rouse to open it.' },
  'disk-full': { status: 507, exit: 8, advice: 'Free space on the named file system.' },
  'quota-exceeded': { status: 507, exit: 8, advice: 'Raise the quota, or remove savesets.' },
  'io-error': { status: 500, exit: 9, advice: 'Look at the disk and the kernel log.' },
  'port-taken': { status: 500, exit: 10, advice: 'Stop the other program or choose another port.' },
  'host-unreachable': { status: 502, exit: 11, advice: 'Check that the host is up and reachable.' },
  'hypervisor-unreachable': {
    status: 502,
    exit: 11,
    advice: 'Check that the manager (vCenter, ESXi, libvirt) is up and reachable.',
  },
  'hypervisor-error': { status: 502, exit: 11, advice: 'Read what the hypervisor said.' },
  'hypervisor-unsupported': { status: 422, exit: 11, advice: 'Choose another host or mode.' },
  'proxy-unreachable': { status: 502, exit: 12, advice: 'Start the proxy: rouse up.' },
  'server-unreachable': { status: 502, exit: 12, advice: 'Start the server: rouse up.' },
  'time-out': { status: 504, exit: 13, advice: 'Try again; if it stays, look at the named part.' },
  'missing-tool': { status: 500, exit: 14, advice: 'Install the named package.' },
  internal: { status: 500, exit: 70, advice: 'Report this, with the log of the server.' },
} as const satisfies Record<string, { status: number; exit: number; advice: string }>;

export type ErrorCode = keyof typeof errorTable;

/** The wire form of an error (RFC 9457 members plus `code` and `advice`). */
export interface Problem {
  readonly code: ErrorCode;
  readonly title: string;
  readonly status: number;
  readonly advice: string;
  readonly details?: Readonly<Record<string, unknown>>;
}

export interface ErrorOptions {
  /** What to do about it, when the table's sentence is too general. */
  readonly advice?: string;
  readonly cause?: unknown;
  /** Machine-readable facts: offsets, names, candidates. */
  readonly details?: Readonly<Record<string, unknown>>;
}

export class RouseError extends Error {
  readonly code: ErrorCode;
  readonly advice: string;
  readonly details: Readonly<Record<string, unknown>> | undefined;

  constructor(code: ErrorCode, message: string, options: ErrorOptions = {}) {
    super(message, options.cause === undefined ? {} : { cause: options.cause });
    this.name = 'RouseError';
    this.code = code;
    this.advice = options.advice ?? errorTable[code].advice;
    this.details = options.details;
  }

  get status(): number {
    return errorTable[this.code].status;
  }

  get exitCode(): number {
    return errorTable[this.code].exit;
  }

  toProblem(): Problem {
    const problem = {
      code: this.code,
      title: this.message,
      status: this.status,
      advice: this.advice,
    };
    return this.details === undefined ? problem : { ...problem, details: this.details };
  }

  static fromProblem(problem: Problem): RouseError {
    const code = problem.code in errorTable ? problem.code : 'internal';
    return new RouseError(code, problem.title, {
      advice: problem.advice,
      ...(problem.details === undefined ? {} : { details: problem.details }),
    });
  }
}

export function isRouseError(error: unknown, code?: ErrorCode): error is RouseError {
  return error instanceof RouseError && (code === undefined || error.code === code);
}

/** Node's `code` of a system error (`ENOENT`), or undefined. */
export function systemErrorCode(error: unknown): string | undefined {
  if (error instanceof Error && 'code' in error && typeof error.code === 'string') {
    return error.code;
  }
  return undefined;
}

/** Any thrown value as a RouseError; system errors keep their meaning, the rest is `internal`. */
export function toRouseError(error: unknown, where: string): RouseError {
  if (error instanceof RouseError) return error;
  const message = error instanceof Error ? error.message : String(error);
  switch (systemErrorCode(error)) {
    case 'ENOENT':
      return new RouseError('not-found', `${where}: no such file or directory`, { cause: error });
    case 'EEXIST':
      return new RouseError('already-exists', `${where}: exists already`, { cause: error });
    case 'ENOSPC':
    case 'EDQUOT':
      return new RouseError('disk-full', `${where}: no space left`, { cause: error });
    case 'EACCES':
    case 'EPERM':
      return new RouseError('forbidden', `${where}: permission denied`, { cause: error });
    case 'EADDRINUSE':
      return new RouseError('port-taken', `${where}: the port is taken`, { cause: error });
    case 'EIO':
      return new RouseError('io-error', `${where}: ${message}`, { cause: error });
    default:
      return new RouseError('internal', `${where}: ${message}`, { cause: error });
  }
}
