"""One model on several processes, a rank each: told what to do, watched, and built anew. No torch in here."""
