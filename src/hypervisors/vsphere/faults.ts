import { type ErrorCode, RouseError } from '../../errors.ts';
import { all, at, refAt, textAt } from './vim-xml.ts';
import type { Ref, VimNode } from './vim-xml.ts';

/**
 * What vCenter says when it will not: a typed fault with words for people. It becomes a RouseError
 * that carries those words; `type` is the fault's own name, for those who handle it.
 */
export class VimFault extends RouseError {
  readonly type: string;
  readonly fault: VimNode | undefined;

  constructor(code: ErrorCode, type: string, message: string, parts: FaultParts) {
    super(code, message, {
      details: { fault: type, ...parts.details },
      ...(parts.advice === undefined ? {} : { advice: parts.advice }),
    });
    this.name = 'VimFault';
    this.type = type;
    this.fault = parts.fault;
  }
}

interface FaultParts {
  readonly fault?: VimNode | undefined;
  readonly advice?: string | undefined;
  readonly details?: Readonly<Record<string, unknown>>;
}

export function isFault(error: unknown, ...types: readonly string[]): error is VimFault {
  return error instanceof VimFault && (types.length === 0 || types.includes(error.type));
}

/** Nobody answered: another try may find them back. */
export function isAway(error: unknown): boolean {
  return error instanceof RouseError && awayCodes.has(error.code);
}

const awayCodes: ReadonlySet<string> = new Set(['host-unreachable', 'hypervisor-unreachable']);

/** Faults by what they mean to us; subtypes are named, as an answer tells only its own type. */
const codes: Readonly<Record<string, ErrorCode>> = {
  NotAuthenticated: 'unauthorised',
  InvalidLogin: 'unauthorised',
  NoPermission: 'forbidden',
  RestrictedVersion: 'forbidden',
  ManagedObjectNotFound: 'not-found',
  NotFound: 'not-found',
  FileNotFound: 'not-found',
  DuplicateName: 'already-exists',
  AlreadyExists: 'already-exists',
  FileAlreadyExists: 'already-exists',
  ResourceInUse: 'busy',
  TaskInProgress: 'busy',
  ConcurrentAccess: 'busy',
  FileLocked: 'busy',
  InvalidState: 'wrong-state',
  InvalidPowerState: 'wrong-state',
  InvalidHostState: 'wrong-state',
  InvalidHostConnectionState: 'wrong-state',
  InvalidDatastoreState: 'wrong-state',
  InMaintenanceMode: 'wrong-state',
  VmConfigFault: 'hypervisor-error',
  RequestCanceled: 'cancelled',
  Timedout: 'time-out',
  HostNotConnected: 'host-unreachable',
  HostNotReachable: 'host-unreachable',
  HostCommunication: 'host-unreachable',
  NoDiskSpace: 'disk-full',
  InsufficientStorageSpace: 'disk-full',
  NotSupported: 'hypervisor-unsupported',
  MethodNotFound: 'hypervisor-unsupported',
};

const advices: Readonly<Record<string, string>> = {
  InvalidLogin: 'Check the user and its password file, then add the hypervisor again.',
  NotAuthenticated: 'Its session ended and logging in again did not help: look at its log.',
  ResourceInUse: 'End what uses it, then try again.',
  TaskInProgress: 'Wait until the other task on it has ended.',
  InvalidPowerState: 'Look at the state of the machine in vCenter.',
  HostNotConnected: 'Reconnect the host in vCenter, or choose another one.',
  HostNotReachable: 'Look at the host, or choose another one.',
  NoDiskSpace: 'Free space on that datastore, or choose another one.',
  RestrictedVersion: 'A free ESXi licence allows reading only: license the host.',
};

/** `what`: the call or task, as a sentence needs it: `PowerOnVM_Task of web01`. */
export function faultError(
  fault: VimNode | undefined,
  words: string | undefined,
  what: string,
): VimFault {
  const type = typeOf(fault);
  const said = wordsOf(fault, words);
  const message = said === '' ? `${what}: ${type}` : `${what}: ${said} (${type})`;
  const { object, privileges } = missingOf(fault);
  if (type === 'NoPermission') {
    const named = privileges.join(', ') || 'unknown';
    return new VimFault(
      'forbidden',
      type,
      `${message}: privilege ${named} on ${object?.id ?? '?'}`,
      {
        fault,
        advice: `Give the user of Rouse a role with ${named} there.`,
        details: { privileges, object: object ?? null },
      },
    );
  }
  const code = codes[type] ?? 'hypervisor-error';
  return new VimFault(code, type, message, { fault, advice: advices[type] });
}

function typeOf(fault: VimNode | undefined): string {
  if (fault === undefined) return 'RuntimeFault';
  return fault.type ?? fault.name.replace(/Fault$/u, '');
}

/** The fault's own sentence and what it names as its reasons, each once. */
function wordsOf(fault: VimNode | undefined, words: string | undefined): string {
  const reasons = all(fault, 'faultMessage').map((reason) => textAt(reason, 'message') ?? '');
  const cause = textAt(fault, 'faultCause.localizedMessage') ?? '';
  const text = textAt(fault, 'text') ?? textAt(fault, 'reason') ?? '';
  const parts = [words ?? '', ...reasons, text, cause].map((part) => part.trim().slice(0, 1000));
  return [...new Set(parts.filter((part) => part !== ''))].join(' ');
}

/** NoPermission: `object` and `privilegeId`; since 7.0.3.2 also `missingPrivileges`. */
function missingOf(fault: VimNode | undefined): { object: Ref | undefined; privileges: string[] } {
  const missing = all(fault, 'missingPrivileges');
  const several = missing.flatMap((one) => all(one, 'privilegeIds').map(({ text }) => text));
  const single = textAt(fault, 'privilegeId') ?? '';
  const privileges = [...new Set([single, ...several].filter((id) => id !== ''))];
  return { object: refAt(fault, 'object') ?? refAt(missing[0], 'entity'), privileges };
}

/** A SOAP fault in an answer's body, if it is one. */
export function soapFault(body: VimNode | undefined, what: string): VimFault | undefined {
  const fault = at(body, 'Fault');
  if (fault === undefined) return undefined;
  const detail = at(fault, 'detail')?.children[0];
  return faultError(detail, textAt(fault, 'faultstring'), what);
}
