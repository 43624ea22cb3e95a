import { RouseError } from '../errors.ts';

/** The server has closed the connection, or it broke. */
export function vanished(name: string, cause: unknown): RouseError {
  const why = cause instanceof Error ? cause.message : String(cause);
  return new RouseError('host-unreachable', `${name}: vanished: ${why}`, {
    advice: 'Check that the NBD server still runs, and start again.',
    cause,
  });
}

export function silent(name: string, milliseconds: number): RouseError {
  return new RouseError('time-out', `${name}: no answer for ${milliseconds / 1000} seconds`, {
    advice: 'Check the server and the disk below it, and start again.',
  });
}

export function wrongServer(name: string, what: string): RouseError {
  return new RouseError('corrupt-data', `${name}: breaks the NBD protocol: ${what}`, {
    advice: 'Check what listens there; an NBD server it is not, or a broken one.',
  });
}
