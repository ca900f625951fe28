"""The report of ``ugicm report``: curves of codecs on datasets, compared on one HTML page."""
